"""The report as a page: well-formed, complete, inert whatever a model is called, and written whole or not at all."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import onnx
import pytest
from onnx import ModelProto
from typer.testing import CliRunner

from onnx_fuse.cli.app import app
from onnx_fuse.cli.html_report import MOST_LISTED, to_html
from onnx_fuse.passes.report import LayerRecord, MatchRecord, NearMissRecord, PassRecord, Report
from tests import helpers

EVIL = '<script>alert(1)</script><img src="https://evil.example/x" onerror=alert(2)>"\'&'
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Reads a page and fails where a tag is not closed, or closed in the wrong place."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing, at line {self.getpos()[0]}"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def match(layer: int, name: str = "encoder.layer.{}.attention", **changes: object) -> MatchRecord:
    fields: dict[str, object] = {
        "fusion": "FusedAttentionLayerNorm", "operator": "FusedAttentionLayerNorm", "node": f"fused_{layer}",
        "root": f"norm_{layer}", "graph": "", "replaced": ("matmul", "shape", "softmax", "norm"), "inputs": ("query",),
        "outputs": ("output",), "parts": ("projection", "norm"), "left_out": (f"mul_{layer}: Mul is no part of it",),
        "block": name.format(layer), "advice": (), "replaced_types": ("MatMul", "Constant", "Softmax", "LayerNormalization"),
        "replaced_edges": ((0, 2), (1, 2), (2, 3)),
    }  # fmt: skip
    return MatchRecord(**{**fields, **changes})  # type: ignore[arg-type]


def report(count: int = 3, **changes: object) -> Report:
    miss = NearMissRecord(
        "FusedSwish", "mul", "Mul", "loop/body", "s", 2, 2, "its output s is a graph output", "head", "Drop s."
    )
    return Report(
        **{  # type: ignore[arg-type]
            "model": "folder/m.onnx",
            "nodes_before": 100,
            "nodes_after": 40,
            "matches": [match(layer) for layer in range(count)],
            "near_misses": [miss],
            "layers": [
                LayerRecord("embeddings", 5, 5),
                *(LayerRecord(f"encoder.layer.{n}", 30, 27) for n in range(count)),
            ],
            "passes": [PassRecord("fuse", 1.5, 100, 40, 3, 1)],
            "warnings": ["opset 9 is older than 13 and could not be converted, so nothing was fused: no."],
            "equalities": {"sequence": 7},
            "verification": {
                "passed": True,
                "rtol": 1e-4,
                "worst": {"y": {"max_abs": 1e-6, "relative": "nan", "problem": None}},
                "cases": [{"name": "drawn", "shapes": {"x": [2, 3]}, "passed": True, "comparisons": []}],
                "notes": ["z tells nothing"],
            },
            "versions": {"onnx-fuse": "1.2.3"},
            **changes,
        }
    )


def test_says_everything() -> None:
    page = Page(to_html(report()))
    for said in (
        "m.onnx",
        "100 → 40",
        "60% fewer",
        "Equal",
        "3×",
        "fused_0",
        "fused_1",
        "fused_2",
        "encoder.layer.0.attention … encoder.layer.2.attention",
        "with projection, norm",
        "mul_1: Mul is no part of it",
        "its output s is a graph output",
        "mul in loop/body",
        "Drop s.",
        "sequence = 7",
        "Export again with opset_version=17 or newer.",
        "z tells nothing",
        "x [2, 3]",
        "onnx-fuse 1.2.3",
    ):
        assert said in page.text, said
    assert page.tags[0][0] == "html" and page.tags[0][1]["lang"] == "en"
    assert page.count("h1") == 1 and page.count("main") == 1


def test_picture_links_each_layer_to_what_was_replaced() -> None:
    page = Page(to_html(report()))
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert links == ["#fusion-1"] * 3
    assert len(ids) == len(set(ids)) and "fusion-1" in ids
    assert [tag for tag, attributes in page.tags if attributes.get("class") == "edge"] == ["path"] * 2  # no constants
    for name in ("embeddings", "encoder.layer.2", "LayerNormalization"):
        assert name in page.texts


def test_many_equal_layers_are_drawn_once() -> None:
    page = Page(to_html(report(48)))
    assert page.count("a") == 1
    assert "encoder.layer.0 … 47" in page.texts
    assert all(f"fused_{layer}" in page.text for layer in range(48))


def test_fetches_nothing() -> None:
    page = to_html(report())
    assert "http:" not in page and "https:" not in page and "@import" not in page and "url(" not in page
    parsed = Page(page)
    assert {
        name for tag, attributes in parsed.tags for name in attributes if name in ("src", "srcset", "action")
    } == set()
    assert {tag for tag, _ in parsed.tags} & {"img", "iframe", "object", "embed", "base", "form"} == set()
    policy = next(attributes["content"] for _, attributes in parsed.tags if "http-equiv" in attributes)
    assert policy is not None and policy.startswith("default-src 'none'")


def test_names_are_nothing_but_text() -> None:
    evil = report(
        model=EVIL,
        matches=[match(0, EVIL, operator=EVIL, node=EVIL, root=EVIL, graph=EVIL, replaced=(EVIL,) * 4, parts=(EVIL,),
                       replaced_types=(EVIL,) * 4, left_out=(EVIL,), advice=(EVIL,), inputs=(EVIL,), outputs=(EVIL,)),
                 match(1, EVIL, operator=EVIL)],
        near_misses=[NearMissRecord(EVIL, EVIL, EVIL, EVIL, EVIL, 1, 2, EVIL, EVIL, EVIL)],
        layers=[LayerRecord(EVIL, 3, 2), LayerRecord("\x1b]0;\ud800", 3, 2)],
        passes=[PassRecord(EVIL, 0.1, 1, 1, error=EVIL)],
        warnings=[EVIL],
        equalities={EVIL: 1},
        verification={"passed": False, "problem": EVIL, "remedy": EVIL, "notes": [EVIL],
                      "worst": {EVIL: {"max_abs": 1.0, "relative": "inf", "problem": EVIL}},
                      "cases": [{"name": EVIL, "shapes": {EVIL: [1]}, "passed": False}]},
        versions={EVIL: EVIL},
    )  # fmt: skip
    text = to_html(evil)
    page = Page(text)
    assert page.count("script") == 1 and page.count("img") == 0
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "\x1b" not in text and EVIL in page.text
    text.encode()


def test_nothing_fused() -> None:
    page = Page(
        to_html(
            Report(model="m.onnx", nodes_before=2, nodes_after=2, verification={"skipped": "nothing was rewritten"})
        )
    )
    assert "Nothing was fused" in page.text and "Unchanged" in page.text and page.count("a") == 0


@pytest.mark.parametrize(
    ("verification", "verdict"),
    [
        (None, "Not verified"),
        ({"skipped": "no memory"}, "Not verified"),
        ({"passed": False, "problem": "y differs"}, "Not equal"),
    ],
)
def test_verdict(verification: dict[str, object] | None, verdict: str) -> None:
    assert verdict in Page(to_html(report(verification=verification))).texts


def test_a_large_report_stays_a_page() -> None:
    misses = [NearMissRecord("F", f"n_{n}", "Mul", "", "s", 1, 2, f"its output v_{n} is absent") for n in range(5000)]
    page = to_html(report(near_misses=misses))
    assert f"and {5000 - MOST_LISTED:,} more" in page and len(page) < 500_000


def swish_model() -> ModelProto:
    return helpers.model("(float[N, 8] x) => (float[N, 8] y) { s = Sigmoid(x) y = Mul(x, s) }")


def test_command_writes_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "m.onnx", tmp_path / "R.HTML"
    onnx.save(swish_model(), source)
    arguments = [
        "fuse",
        str(source),
        "-o",
        str(tmp_path / "out.onnx"),
        "--report",
        str(target),
        "--enable",
        "FusedSwish",
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    page = Page(target.read_text(encoding="utf-8"))
    assert "FusedSwish" in page.text and "Equal" in page.text and page.count("a") == 1
    assert re.search(r"(\d+) nodes?", page.text)
    before = target.read_bytes()

    def broken(report: Report) -> str:
        raise RuntimeError("half-way")

    monkeypatch.setattr("onnx_fuse.cli.html_report.to_html", broken)
    assert CliRunner().invoke(app, arguments).exit_code == 1
    assert target.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["R.HTML", "m.onnx", "out.onnx"]


def test_command_writes_it_when_a_requirement_is_not_met(tmp_path: Path) -> None:
    source, target = tmp_path / "m.onnx", tmp_path / "r.html"
    onnx.save(swish_model(), source)
    arguments = ["fuse", str(source), "-o", str(tmp_path / "out.onnx"), "--report", str(target)]
    assert CliRunner().invoke(app, [*arguments, "--require", "FusedAttentionLayerNorm=1"]).exit_code == 3
    assert "Nothing was fused" in Page(target.read_text(encoding="utf-8")).text
