"""Drawn inputs: every symbol one number, ids inside their table, masks that keep something."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from onnx_fuse.errors import ModelError
from onnx_fuse.runtime.verify.random_inputs import (
    DRAWS,
    EXTREMES,
    LONG_LENGTHS,
    REACH,
    Draw,
    InputSpec,
    draw_inputs,
    draw_shapes,
    extremes,
    further_draw,
    has_floats,
    has_mask,
    input_specs,
    lengths_left,
    long_lengths,
)

TABLE = numpy_helper.from_array(np.zeros((11, 4), np.float32), "table")


def model(inputs: str, body: str, outputs: str = "float[a] y", functions: str = "") -> ModelProto:
    header = '<ir_version: 9, opset_import: ["" : 18, "custom" : 1]>'
    made = parser.parse_model(f"{header} g ({inputs}) => ({outputs}) {{ {body} }} {functions}")
    made.graph.initializer.append(TABLE)
    return made


def spec(
    name: str, elem_type: int, *dims: int | str, role: str = "data", rows: tuple[int | str, ...] = ()
) -> InputSpec:
    return InputSpec(name, elem_type, dims, role, rows)


def role_of(name: str, elem_type: str) -> str:
    return input_specs(model(f"{elem_type}[b,s] {name}", f"y = Identity({name})"))[0].role


def test_reads_names_types_and_dims_and_leaves_out_initializers() -> None:
    made = model("float[batch,s,3] x, int64[batch,?,s] i, float[11,4] table", "y = Identity(x)")
    assert input_specs(made) == (
        spec("x", TensorProto.FLOAT, "batch", "s", 3),
        spec("i", TensorProto.INT64, "batch", "i:1", "s"),
    )


@pytest.mark.parametrize(
    "way",
    [
        "y = Gather(table, ids)",
        "y = Gather <axis = 0> (table, ids)",
        "a = Cast <to = 6> (ids) b = Unsqueeze(a, a) c = Identity(b) d = Slice(c, c, c) y = Gather(table, d)",
        "a = Reshape(ids, ids) z = Constant <value_int = 0> () c = Where(z, z, a) y = Gather(table, c)",
        "t = Identity(table) u = Cast <to = 10> (t) y = Gather(u, ids)",
        "a, b = Split <axis = 1, num_outputs = 2> (ids) y = Gather(table, b)",
        "y = GatherElements <axis = 0> (table, ids)",
        "y = custom.Look(ids, table)",
        "c = Constant <value = bool {1}> () y = If (c) <"
        "then_branch = one () => (float[a] p) { p = Gather(table, ids) }, "
        "else_branch = two () => (float[a] q) { q = Cast <to = 1> (ids) }>",
    ],
)
def test_ids_are_recognised_and_bounded_by_their_table(way: str) -> None:
    look = '<domain: "custom", opset_import: ["" : 18]> Look (i, t) => (o) { j = Identity(i) o = Gather(t, j) }'
    (ids,) = input_specs(model("int64[b,s] ids", way, functions=look))
    assert (ids.role, ids.rows) == ("ids", (11,))
    drawn = draw_inputs((ids,), Draw(40, 40))["ids"]
    assert drawn.min() == 0
    assert drawn.max() == 10


def test_the_smallest_of_several_tables_counts() -> None:
    made = model("int64[b,s] ids", "x = Gather(small, ids) y = Gather(table, ids)")
    made.graph.initializer.append(numpy_helper.from_array(np.zeros((3, 4), np.float32), "small"))
    assert draw_inputs(input_specs(made), Draw(40, 40))["ids"].max() == 2


def test_positions_in_a_drawn_axis_stay_inside_it() -> None:
    made = model("float[b,s,4] x, int64[b] last", "y = Gather <axis = 1> (x, last)")
    specs = input_specs(made)
    assert specs[1].rows == ("s",)
    drawn = draw_inputs(specs, Draw(200, 5))
    assert drawn["last"].max() == 4


def test_an_unknown_table_leaves_ids_at_zero_and_one() -> None:
    made = model("int64[b,s] ids", "t = Exp(table) y = Gather(t, ids)")
    assert draw_inputs(input_specs(made), Draw(9, 9))["ids"].max() == 1


def test_ids_that_are_only_looked_at_are_no_ids() -> None:
    made = model("int64[b,s] ids", "n = Shape(ids) y = Gather(n, zero)")
    assert input_specs(made)[0].role == "data"


@pytest.mark.parametrize(
    ("name", "elem_type", "role"),
    [
        ("attention_mask", "int64", "mask"),
        ("attention_mask", "float", "mask"),
        ("mask", "bool", "mask"),
        ("src_key_padding_mask", "bool", "padding"),
        ("is_pad", "bool", "padding"),
        ("spade", "bool", "data"),
        ("lengths", "int32", "length"),
        ("seq_len", "int64", "length"),
        ("lens", "int64", "length"),
        ("timestamps", "int64", "time"),
        ("lengthy_story", "float", "data"),
        ("x", "float", "data"),
        ("attention_bias", "float", "data"),
    ],
)
def test_roles_by_name_and_type(name: str, elem_type: str, role: str) -> None:
    assert role_of(name, elem_type) == role


def test_equal_symbols_share_a_number_and_others_do_not() -> None:
    made = model("float[batch,s,3] x, int64[batch,t] i, bool[s,t] m, float[?,s] z", "y = Identity(x)")
    for draw in DRAWS:
        shapes = draw_shapes(input_specs(made), draw)
        batch, length, other = draw.batch, shapes["x"][1], shapes["i"][1]
        assert shapes["x"] == (batch, length, 3)
        assert shapes["i"] == (batch, other)
        assert shapes["m"] == (length, other)
        assert shapes["z"][0] != batch
        assert length != other


def test_equal_draws_give_all_of_a_kind_one_number() -> None:
    made = model("float[b,s] x, float[c,t] z", "y = Identity(x)")
    assert draw_shapes(input_specs(made), Draw(3, 5, equal=True)) == {"x": (3, 5), "z": (3, 5)}


def test_sums_of_symbols_follow_from_their_parts() -> None:
    specs = (
        spec("ids", TensorProto.INT64, "batch", "sequence"),
        spec("past", TensorProto.FLOAT, "batch", 2, "past", 4),
        spec("mask", TensorProto.INT64, "batch", "past + sequence"),
        spec("more", TensorProto.INT64, "2*sequence - 1"),
        spec("odd", TensorProto.INT64, "what(ever)"),
    )
    shapes = draw_shapes(specs, Draw(2, 6))
    sequence, past = shapes["ids"][1], shapes["past"][2]
    assert shapes["mask"] == (2, past + sequence)
    assert shapes["more"] == (2 * sequence - 1,)
    assert len(shapes["odd"]) == 1


@given(
    padding=st.sampled_from(["none", "right", "left", "inner"]),
    batch=st.integers(1, 5),
    length=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_masks_keep_something_in_every_row(padding: str, batch: int, length: int, seed: int) -> None:
    mask = spec("mask", TensorProto.INT64, "b", "s", role="mask")
    kept = draw_inputs((mask,), Draw(batch, length, padding), seed)["mask"]
    assert kept.dtype == np.int64
    assert set(np.unique(kept)) <= {0, 1}
    assert kept.any(axis=1).all()
    steps = np.diff(kept, axis=1)
    if padding == "right":
        assert (steps <= 0).all()
    if padding == "left":
        assert (steps >= 0).all()
    if padding in ("right", "left") and batch > 1 and length > 1:
        assert kept.all(axis=1).any()
        assert not kept.all()


def test_row_masks_one_row_out_and_padding_is_the_opposite() -> None:
    specs = (
        spec("mask", TensorProto.BOOL, "b", "s", role="mask"),
        spec("padding", TensorProto.BOOL, "b", "s", role="padding"),
    )
    drawn = draw_inputs(specs, Draw(3, 6, "row"))
    assert not drawn["mask"][0].any()
    assert drawn["mask"][1:].any(axis=1).all()
    assert drawn["padding"][0].all()
    assert not drawn["padding"][1:].all(axis=1).any()


def test_kinds_of_data() -> None:
    specs = (
        spec("x", TensorProto.FLOAT16, "b", "s"),
        spec("h", TensorProto.BFLOAT16, "b", "s"),
        spec("u", TensorProto.UINT8, "b", "s"),
        spec("i", TensorProto.INT32, "b", "s"),
        spec("n", TensorProto.INT32, "b", role="length"),
        spec("t", TensorProto.INT64, "b", "s", role="time"),
        spec("text", TensorProto.STRING, "b"),
        spec("flag", TensorProto.BOOL),
    )
    drawn = draw_inputs(specs, Draw(50, 20, scale=0.01))
    assert 0.005 < drawn["x"].astype(np.float32).std() < 0.02
    assert drawn["h"].dtype.name == "bfloat16"
    assert drawn["u"].max() > 200
    assert set(np.unique(drawn["i"])) == {0, 1}
    assert drawn["n"].min() >= 1
    assert drawn["n"].max() <= 20
    assert (np.diff(drawn["t"], axis=1) >= 0).all()
    assert all(isinstance(one, str) for one in drawn["text"])
    assert drawn["flag"].shape == ()
    assert has_floats(specs)
    assert not has_mask(specs)


@pytest.mark.parametrize("size", [1 << 62, 1 << 40])
def test_inputs_that_are_too_large_say_so(size: int) -> None:
    made = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[{size},{size},8] x) => (float y) {{ y = Size(x) }}'
    )
    with pytest.raises(ModelError, match="GB of memory"):
        draw_inputs(input_specs(made), DRAWS[0])


def test_the_seed_decides() -> None:
    specs = (spec("x", TensorProto.FLOAT, "b", "s"),)
    first, same, other = (draw_inputs(specs, DRAWS[0], seed)["x"] for seed in ((1, 2), (1, 2), (1, 3)))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_what_cannot_be_drawn_says_which_input() -> None:
    made = ModelProto()
    made.graph.input.append(helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, ["n"]))
    with pytest.raises(ModelError, match="'list' is a sequence_type"):
        input_specs(made)
    with pytest.raises(ModelError, match="'f' has no shape"):
        draw_inputs((InputSpec("f", TensorProto.FLOAT, None, "data"),), DRAWS[0])
    with pytest.raises(ModelError, match="'f': there is no random data of type FLOAT8E4M3FN"):
        draw_inputs((spec("f", TensorProto.FLOAT8E4M3FN, "n"),), DRAWS[0])


def test_ids_cover_their_table_its_ends_always() -> None:
    ids = spec("ids", TensorProto.INT64, "b", "s", role="ids", rows=(1000,))
    for seed in range(5):
        few = draw_inputs((ids,), Draw(2, 3), seed)["ids"]
        assert {0, 999} <= set(few.ravel().tolist()) and len(np.unique(few)) == few.size
    all_of_them = draw_inputs((ids,), Draw(40, 40), 0)["ids"]
    assert len(np.unique(all_of_them)) == 1000
    single = {int(draw_inputs((ids,), Draw(1, 1), seed)["ids"].item()) for seed in range(20)}
    assert single == {0, 999}


def test_lengths_go_from_one_to_the_longest() -> None:
    specs = (spec("x", TensorProto.FLOAT, "b", "s"), spec("lengths", TensorProto.INT64, "b", role="length"))
    for seed in range(5):
        drawn = draw_inputs(specs, Draw(4, 9), seed)["lengths"]
        assert {1, 9} <= set(drawn.tolist()) and drawn.min() >= 1 and drawn.max() <= 9
    assert draw_inputs(specs, Draw(4, 9, empty=True))["lengths"][0] == 0
    assert draw_inputs(specs, Draw(2, 0, equal=True))["lengths"].tolist() == [0, 0]


@pytest.mark.parametrize(("kind", "low", "high"), [(TensorProto.FLOAT, 1e-4, 1e4), (TensorProto.FLOAT16, 1e-3, 1e1)])
def test_spread_rows_have_magnitudes_of_their_own(kind: int, low: float, high: float) -> None:
    drawn = draw_inputs((spec("x", kind, "b", "s", 64),), Draw(3, 9, spread=True))["x"].astype(np.float64)
    rows = drawn.std(axis=-1)
    assert rows.min() == pytest.approx(low, rel=0.5) and rows.max() == pytest.approx(high, rel=0.5)
    assert np.isfinite(drawn).all()


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_magnitudes_reach_to_the_ends_of_the_type_and_none_leaves_it(kind: int) -> None:
    drawn = draw_inputs((spec("x", kind, "b", "s", 64),), Draw(7, 9, reach=REACH))["x"]
    limits = ml_dtypes.finfo(drawn.dtype)
    wide = np.abs(drawn.astype(np.float64))
    assert np.isfinite(wide).all() and wide.max() <= float(limits.max)
    usual = np.log10(np.median(wide.reshape(7, -1), axis=1))
    top, bottom = np.log10(float(limits.max)), -np.log10(float(limits.smallest_normal))
    assert usual == pytest.approx([part * (top if part > 0 else bottom) for part in REACH], abs=0.4)
    assert usual.max() > top - top / 10 and usual.min() < -bottom + bottom / 5
    (one,) = draw_inputs((spec("x", kind, 1, 9, 64),), Draw(7, 9, reach=REACH)).values()
    assert np.log10(np.median(np.abs(one.astype(np.float64)))) == pytest.approx(REACH[0] * top, abs=0.4)


def test_extremes_are_drawn_where_they_mean_something() -> None:
    floats, ids = spec("x", TensorProto.FLOAT, "b", "s"), spec("i", TensorProto.INT64, "b", role="ids")
    lengths = spec("n", TensorProto.INT64, "b", role="length")
    table = InputSpec("table", TensorProto.INT64, ("n", "m"), "ids", (9,))
    assert extremes((floats, lengths, table), nothing=True) == EXTREMES
    assert all(not draw.empty for draw in extremes((floats,), nothing=True))
    assert [draw.spread for draw in extremes((floats, lengths), nothing=False)] == [True, False]
    assert [draw.reach for draw in extremes((floats, lengths), nothing=False)] == [(), REACH]
    assert extremes((ids,), nothing=False) == ()
    (ends,) = extremes((table,), nothing=False)
    assert draw_inputs((table,), ends)["table"].tolist() == [[0, 0, 0], [8, 8, 8]]
    assert {0} <= {draw.batch for draw in EXTREMES} and {0} <= {draw.length for draw in EXTREMES}
    assert max(draw.batch for draw in DRAWS) > 3


def test_long_lengths_are_for_what_they_cost() -> None:
    """All of them where nothing is multiplied; a part of the time that the other draws take where much is."""
    small, large, table, pairs = ModelProto(), ModelProto(), ModelProto(), ModelProto()
    for model in (large, table):
        model.graph.initializer.append(TensorProto(name="w", dims=[10000, 10000]))
    table.graph.node.append(helper.make_node("Gather", ["w", "ids"], ["x"]))
    pairs.graph.node.extend(
        helper.make_node("MatMul", [f"q{number}", f"k{number}"], [f"s{number}"]) for number in range(4)
    )
    assert long_lengths(small) == long_lengths(table) == LONG_LENGTHS
    assert long_lengths(large) == (64,)
    assert long_lengths(pairs) == (1024, 512, 256, 128, 64)


@pytest.mark.parametrize(
    ("refusal", "lengths"),
    [
        ("indices element out of data bounds, idx=64 must be within the inclusive range [-50,49]", [50]),
        ("indices element out of data bounds, idx=200 must be within the inclusive range [-200,199]", [200, 128, 64]),
        ("cannot be reshaped. Input shape:{2,512,8}, requested shape:{2,96,8}", [96, 8, 2, 256, 128, 64]),
        ("it failed", [256, 128, 64]),
    ],
)
def test_a_refused_length_tells_which_to_try_next(refusal: str, lengths: list[int]) -> None:
    assert lengths_left((256, 128, 64), 512, refusal) == lengths


def test_further_draws_differ() -> None:
    random = np.random.default_rng(0)
    draws = [further_draw(random) for _ in range(50)]
    assert {draw.padding for draw in draws} == {"none", "right", "left", "inner"}
    assert max(draw.length for draw in draws) > 200 and min(draw.length for draw in draws) < 5
    assert len({draw.batch for draw in draws}) == 8
