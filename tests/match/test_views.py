"""Laws of the 2-D views: exact both ways, for every kind and every part."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from graftlib.errors import ViewError
from graftlib.graph.parameter import Parameter, Part
from graftlib.match import matrix, matrix_shape, unmatrix

sizes = st.integers(1, 5)
KERNELS = {1: ("kw",), 2: ("kh", "kw"), 3: ("kd", "kh", "kw")}
DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.complex64,
    torch.int8,
    torch.bool,
]


def record(kind, shape, axes=("out", "in"), **facts):
    """A parameter as a trace would describe it."""
    return Parameter(
        "layer.weight", tuple(shape), torch.float32, kind, "weight", "layer", 0.5, axes, **facts
    )


def numbered(shape, dtype=torch.float32):
    """Every element another number, so that no move goes unseen."""
    return torch.arange(math.prod(shape), dtype=dtype).reshape(shape)


def same_bits(one, other):
    one, other = one.flatten(), other.flatten()  # a last axis of size 1 may have any stride
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def linear(out, wide):
    return record("linear", (out, wide))


def conv1d_of_hugging_face(out, wide):
    return record("linear", (wide, out), ("in", "out"))


def conv(out, wide, kernel, groups=1):
    kind = "conv" if groups == 1 else "depthwise" if wide == 1 else "grouped"
    axes = ("out", "in", *KERNELS[len(kernel)])
    return record(kind, (groups * out, wide, *kernel), axes, groups=groups)


def transposed(out, wide, kernel, groups=1):
    axes = ("in", "out", *KERNELS[len(kernel)])
    return record("transposed_conv", (groups * wide, out, *kernel), axes, groups=groups)


def packed_qkv(heads, size, wide, *, stored_in_out=False):
    """Query, key and value rows one after the other, each head by head."""
    width = heads * size
    axis = 1 if stored_in_out else 0
    parts = {
        name: Part(axis, range(i * width, (i + 1) * width), heads, f"attention.{name}")
        for i, name in enumerate(("query", "key", "value"))
    }
    shape, axes = (
        ((wide, 3 * width), ("in", "out")) if stored_in_out else ((3 * width, wide), ("out", "in"))
    )
    return record("linear", shape, axes, parts=parts)


def interleaved_qkv(heads, size, wide):
    """Head 0's query, key, value, then head 1's: the units of a part are scattered."""
    parts = {}
    for i, name in enumerate(("query", "key", "value")):
        units = tuple(
            3 * size * head + i * size + unit for head in range(heads) for unit in range(size)
        )
        parts[name] = Part(0, units, heads, f"attention.{name}")
    return record("linear", (3 * heads * size, wide), parts=parts)


def attention_output(heads, size, out):
    """The heads of an output projection lie on its inputs."""
    return record(
        "linear", (out, heads * size), parts={"heads": Part(1, range(heads * size), heads)}
    )


def gates(names, hidden, wide):
    parts = {name: Part(0, range(i * hidden, (i + 1) * hidden)) for i, name in enumerate(names)}
    return record("recurrent", (len(names) * hidden, wide), parts=parts)


@st.composite
def parameters(draw):
    """A parameter of every kind that has a view, whole or a part."""
    out, wide, heads, groups = draw(sizes), draw(sizes), draw(sizes), draw(st.integers(1, 3))
    kernel = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    whole = draw(
        st.sampled_from(
            [
                linear(out, wide),
                conv1d_of_hugging_face(out, wide),
                record("embedding", (out, wide), ("entry", "dim")),
                conv(out, wide, kernel),
                conv(out, wide, [1] * len(kernel)),
                conv(out, 1, kernel, groups),
                conv(out, wide, kernel, groups),
                transposed(out, wide, kernel),
                transposed(out, wide, kernel, groups),
                packed_qkv(heads, out, wide),
                packed_qkv(heads, out, wide, stored_in_out=True),
                interleaved_qkv(heads, out, wide),
                attention_output(heads, out, wide),
                gates(["input", "forget", "cell", "output"], out, wide),
                gates(["reset", "update", "new"], out, wide),
            ]
        )
    )
    names = [None, *whole.parts]
    names += [
        f"{name}.head[0]" for name, part in whole.parts.items() if part.heads and name != "heads"
    ]
    names += [f"head[{heads - 1}]"] if "heads" in whole.parts else []
    names += [f"group[{whole.groups - 1}]"] if whole.groups > 1 else []
    part = draw(st.sampled_from(names))
    return whole if part is None else whole.select(part)


@given(parameters(), st.sampled_from(DTYPES))
def test_there_and_back_gives_the_same_bits(parameter, dtype):
    tensor = torch.randint(0, 256, parameter.shape).to(torch.uint8)
    tensor = (tensor % 2).bool() if dtype == torch.bool else tensor.to(torch.float32).to(dtype)
    back = unmatrix(parameter, matrix(parameter, tensor), into=tensor)
    assert back.shape == tensor.shape
    assert same_bits(back, tensor)


@given(parameters())
def test_the_record_alone_tells_the_shape(parameter):
    assert matrix(parameter, numbered(parameter.shape)).shape == matrix_shape(parameter)


@given(parameters())
def test_a_matrix_comes_back_from_any_tensor(parameter):
    """matrix(p, unmatrix(p, m, into)) is m whatever `into` holds."""
    m = numbered(matrix_shape(parameter)) + 0.5
    assert torch.equal(matrix(parameter, unmatrix(parameter, m, numbered(parameter.shape))), m)


@given(parameters())
def test_every_element_is_in_the_matrix_once(parameter):
    """...so nothing is lost or doubled, which a round trip alone would not see."""
    seen = matrix(parameter, numbered(parameter.shape)).flatten().tolist()
    part = parameter.selection
    units = range(parameter.shape[0]) if part is None else part.units
    own = numbered(parameter.shape).index_select(
        0 if part is None else part.axis, torch.tensor(units)
    )
    assert sorted(seen) == sorted(own.flatten().tolist())


@given(parameters())
def test_writing_a_part_leaves_the_other_units_alone(parameter):
    part = parameter.selection
    if part is None:
        return
    before = torch.randn(parameter.shape)
    after = unmatrix(parameter, torch.full(matrix_shape(parameter), torch.nan), into=before)
    others = [unit for unit in range(parameter.shape[part.axis]) if unit not in set(part.units)]
    others = torch.tensor(others, dtype=torch.int64)
    assert same_bits(after.index_select(part.axis, others), before.index_select(part.axis, others))
    assert after.isnan().sum() == math.prod(matrix_shape(parameter))
    assert not before.isnan().any(), "`into` itself was written"


@given(parameters())
def test_the_gradient_of_there_and_back_is_the_identity(parameter):
    tensor = torch.randn(parameter.shape, requires_grad=True)
    asked = torch.randn(parameter.shape)
    back = unmatrix(parameter, matrix(parameter, tensor), into=tensor)
    assert torch.equal(torch.autograd.grad(back, tensor, asked)[0], asked)


@given(parameters())
def test_gradients_reach_the_matrix_and_the_rest(parameter):
    """A written unit is the matrix's, every other one is `into`'s."""
    m = torch.randn(matrix_shape(parameter), requires_grad=True)
    into = torch.randn(parameter.shape, requires_grad=True)
    asked = torch.randn(parameter.shape)
    written = unmatrix(parameter, m, into)
    to_matrix, to_into = torch.autograd.grad(written, (m, into), asked, allow_unused=True)
    assert torch.equal(to_matrix, matrix(parameter, asked))
    if parameter.part is not None:
        assert torch.equal(to_into, unmatrix(parameter, torch.zeros(m.shape), asked))


@given(parameters())
def test_meta_tensors_have_views(parameter):
    tensor = torch.empty(parameter.shape, device="meta")
    m = matrix(parameter, tensor)
    assert m.is_meta
    assert m.shape == matrix_shape(parameter)
    assert unmatrix(parameter, m, into=tensor).shape == parameter.shape


@given(parameters())
def test_memory_order_does_not_matter(parameter):
    tensor = torch.randn(parameter.shape[::-1]).permute(*range(len(parameter.shape))[::-1])
    assert torch.equal(matrix(parameter, tensor), matrix(parameter, tensor.contiguous()))


# --- the matrix is the linear map that the layer applies -----------------------------------------------------------


def inputs(*shape):
    return torch.randint(-4, 5, shape, dtype=torch.float64)


@given(sizes, sizes, st.integers(1, 3), st.integers(1, 3))
def test_a_convolution_is_its_matrix_on_patches(out, wide, high, broad):
    parameter = conv(out, wide, [high, broad])
    w, x = inputs(*parameter.shape), inputs(2, wide, 5, 6)
    patches = F.unfold(x, (high, broad)).transpose(1, 2)
    y = (patches @ matrix(parameter, w).T).transpose(1, 2)
    assert torch.equal(y, F.conv2d(x, w).flatten(2))


@given(sizes, sizes, st.integers(1, 3), st.integers(1, 3))
def test_a_group_is_a_convolution_of_its_own(out, wide, groups, kernel):
    parameter = conv(out, wide, [kernel, kernel], groups)
    w, x = inputs(*parameter.shape), inputs(2, groups * wide, 5, 5)
    ys = []
    for k, own in enumerate(x.chunk(groups, 1)):
        group = parameter.select(f"group[{k}]") if groups > 1 else parameter
        patches = F.unfold(own, (kernel, kernel)).transpose(1, 2)
        ys.append((patches @ matrix(group, w).T).transpose(1, 2))
    assert torch.equal(torch.cat(ys, 1), F.conv2d(x, w, groups=groups).flatten(2))


@given(sizes, sizes, st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))
def test_a_transposed_convolution_is_its_matrix_on_spread_patches(
    out, wide, groups, kernel, stride
):
    """Spread the input by the stride, pad it, and read every patch backwards."""
    parameter = transposed(out, wide, [kernel, kernel], groups)
    w, x = inputs(*parameter.shape), inputs(2, groups * wide, 3, 4)
    spread = torch.zeros(2, groups * wide, 2 * stride + 1, 3 * stride + 1, dtype=x.dtype)
    spread[..., ::stride, ::stride] = x
    spread = F.pad(spread, [kernel - 1] * 4)
    ys = []
    for k, own in enumerate(spread.chunk(groups, 1)):
        group = parameter.select(f"group[{k}]") if groups > 1 else parameter
        patches = F.unfold(own, (kernel, kernel)).unflatten(1, (wide, -1)).flip(2).flatten(1, 2)
        ys.append((patches.transpose(1, 2) @ matrix(group, w).T).transpose(1, 2))
    expected = F.conv_transpose2d(x, w, stride=stride, groups=groups)
    assert torch.equal(torch.cat(ys, 1), expected.flatten(2))
    rows = [matrix(parameter.select(f"group[{k}]"), w) for k in range(groups)] if groups > 1 else []
    if rows:
        assert torch.equal(torch.cat(rows), matrix(parameter, w)), (
            "the whole is its groups, in order"
        )


@given(sizes, sizes)
def test_conv1d_of_hugging_face_is_a_linear_map(out, wide):
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    layer = pytorch_utils.Conv1D(out, wide)
    x = torch.randn(3, wide)
    m = matrix(conv1d_of_hugging_face(out, wide), layer.weight)
    torch.testing.assert_close(x @ m.T + layer.bias, layer(x))


@given(st.integers(1, 3), st.integers(1, 3), sizes, st.booleans())
def test_a_head_of_a_packed_projection_is_its_chunk(heads, size, wide, stored_in_out):
    parameter = packed_qkv(heads, size, wide, stored_in_out=stored_in_out)
    w, x = inputs(*parameter.shape), inputs(2, wide)
    q, k, v = (x @ matrix(parameter, w).T).chunk(3, -1)
    for name, whole in (("query", q), ("key", k), ("value", v)):
        assert torch.equal(x @ matrix(parameter.select(name), w).T, whole)
        for i, head in enumerate(whole.chunk(heads, -1)):
            assert torch.equal(x @ matrix(parameter.select(f"{name}.head[{i}]"), w).T, head)


@given(st.integers(1, 3), st.integers(1, 3), sizes)
def test_heads_of_an_output_projection_add_up(heads, size, out):
    parameter = attention_output(heads, size, out)
    w, x = inputs(*parameter.shape), inputs(2, heads * size)
    parts = [
        own @ matrix(parameter.select(f"head[{i}]"), w).T
        for i, own in enumerate(x.chunk(heads, -1))
    ]
    assert torch.equal(sum(parts), x @ w.T)


# --- one pinned example a convention, none its own inverse ---------------------------------------------------------

PINNED = [
    (linear(2, 3), [[0, 1, 2], [3, 4, 5]]),
    (conv1d_of_hugging_face(2, 3), [[0, 2, 4], [1, 3, 5]]),
    (conv(1, 2, [3]), [[0, 1, 2, 3, 4, 5]]),
    (conv(2, 2, [1, 2]), [[0, 1, 2, 3], [4, 5, 6, 7]]),
    (conv(1, 1, [2], groups=3), [[0, 1], [2, 3], [4, 5]]),
    (conv(1, 2, [2], groups=2), [[0, 1, 2, 3], [4, 5, 6, 7]]),
    (transposed(3, 2, [2]), [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]),
    # Two inputs a group, stored in0, in1, in2, in3, each with its 3 outs.
    (transposed(3, 2, [1], groups=2), [[0, 3], [1, 4], [2, 5], [6, 9], [7, 10], [8, 11]]),
    (transposed(3, 2, [1], groups=2).select("group[1]"), [[6, 9], [7, 10], [8, 11]]),
    (transposed(1, 2, [1, 1, 2]), [[0, 1, 2, 3]]),
    (packed_qkv(2, 1, 2).select("key"), [[4, 5], [6, 7]]),
    (packed_qkv(2, 1, 2).select("value.head[1]"), [[10, 11]]),
    (packed_qkv(1, 2, 2, stored_in_out=True).select("key"), [[2, 8], [3, 9]]),
    (interleaved_qkv(2, 1, 2).select("query"), [[0, 1], [6, 7]]),
    (interleaved_qkv(2, 1, 2).select("value.head[0]"), [[4, 5]]),
    (attention_output(3, 2, 1).select("head[1]"), [[2, 3]]),
    (gates(["reset", "update", "new"], 1, 2).select("update"), [[2, 3]]),
    (record("embedding", (3, 2), ("entry", "dim")), [[0, 1], [2, 3], [4, 5]]),
]


@pytest.mark.parametrize(("parameter", "rows"), PINNED, ids=lambda case: getattr(case, "kind", ""))
def test_each_convention_is_pinned(parameter, rows):
    tensor = numbered(parameter.shape)
    assert matrix(parameter, tensor).tolist() == rows
    written = unmatrix(parameter, -matrix(parameter, tensor) - 1, into=tensor)
    touched = sorted(number for row in rows for number in row)
    assert torch.nonzero(written.flatten() < 0).flatten().tolist() == touched
    assert torch.equal(written[written < 0], -tensor[written < 0] - 1)


def test_reading_a_transposed_weight_as_a_plain_one_is_seen():
    """The laws above can fail: the same numbers with the wrong convention."""
    w, x = torch.randn(3, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    right, wrong = conv1d_of_hugging_face(3, 3), linear(3, 3)
    assert torch.allclose(x @ matrix(right, w).T, x @ w)
    assert not torch.allclose(x @ matrix(wrong, w).T, x @ w)


def test_a_transposed_convolution_without_its_groups_is_seen():
    w = numbered((4, 3, 1))
    grouped, plain = transposed(3, 2, [1], groups=2), transposed(3, 4, [1])
    assert matrix(grouped, w).tolist() != matrix(plain, w).tolist()


@pytest.mark.parametrize(
    "parameter",
    [
        linear(4, 3),
        conv(4, 3, [2, 2]),
        packed_qkv(2, 2, 3).select("key"),
        packed_qkv(2, 2, 3, stored_in_out=True).select("value.head[1]"),
        conv(2, 3, [2], groups=2).select("group[1]"),
    ],
    ids=str,
)
def test_a_range_of_units_is_a_view_without_a_copy(parameter):
    tensor = numbered(parameter.shape)
    assert (
        matrix(parameter, tensor).untyped_storage().data_ptr()
        == tensor.untyped_storage().data_ptr()
    )


def test_scattered_units_are_a_copy():
    tensor, parameter = numbered((6, 2)), interleaved_qkv(2, 1, 2).select("query")
    assert (
        matrix(parameter, tensor).untyped_storage().data_ptr()
        != tensor.untyped_storage().data_ptr()
    )


def test_steps_and_falling_units_keep_their_order():
    stepped = record("linear", (5, 1), parts={"odd": Part(0, range(1, 5, 2))}).select("odd")
    falling = record("linear", (5, 1), parts={"back": Part(0, range(4, -1, -2))}).select("back")
    w = numbered((5, 1))
    assert matrix(stepped, w).tolist() == [[1], [3]]
    assert matrix(falling, w).tolist() == [[4], [2], [0]]
    put = unmatrix(falling, torch.tensor([[-4.0], [-2.0], [-1.0]]), into=w)
    assert put.flatten().tolist() == [-1, 1, -2, 3, -4]
    assert unmatrix(stepped, torch.tensor([[-1.0], [-3.0]]), into=w).flatten().tolist() == [
        0,
        -1,
        2,
        -3,
        4,
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "parameter", [conv(2, 3, [2, 2]), interleaved_qkv(2, 1, 2).select("query")]
)
def test_views_stay_on_the_device(parameter):
    tensor = torch.randn(parameter.shape, device="cuda")
    m = matrix(parameter, tensor)
    assert m.is_cuda
    assert torch.equal(unmatrix(parameter, m, into=tensor), tensor)


# --- what has no view, and what the message says -------------------------------------------------------------------

NO_VIEW = [
    (record("bias", (4,), ("out",)), "one number per unit"),
    (record("norm", (4,), ("out",)), "norm"),
    (record("norm", (4, 5, 6), ()), "norm"),
    (record("other", (1, 5, 4), ()), "no known operation"),
    (record("other", (5, 4), ()), "no known operation"),
    (record("other", (), ()), "no known operation"),
    (record("linear", (4,), ("out",)), "1 axis"),
    (record("linear", (2, 3, 4), ()), "3"),
    (record("conv", (2, 3), ()), "2"),
    (record("recurrent", (2, 3, 4), ()), "3"),
    (record("transposed_conv", (2, 3, 1, 1, 1, 1), ()), "6"),
]


@pytest.mark.parametrize(("parameter", "why"), NO_VIEW, ids=lambda case: getattr(case, "kind", ""))
def test_what_has_no_view_says_why_and_what_to_use(parameter, why):
    for attempt in (
        lambda: matrix_shape(parameter),
        lambda: matrix(parameter, torch.zeros(parameter.shape)),
        lambda: unmatrix(parameter, torch.zeros(1, 1)),
    ):
        with pytest.raises(ViewError, match="has no 2-D view") as error:
            attempt()
        assert why in error.value.why
        assert "use" in error.value.fix


@pytest.mark.parametrize(
    ("module", "bias"),
    [(torch.nn.Linear(2, 3), "bias"), (torch.nn.LSTM(2, 3), "bias_hh_l0")],
)
def test_a_bias_names_the_weight_to_use(module, bias):
    """...and it is there."""
    parameter = Parameter(bias, (3,), torch.float32, "bias", "bias", "", 0.5, ("out",))
    with pytest.raises(ViewError) as error:
        matrix_shape(parameter)
    named = error.value.fix.split("'")[1]
    assert dict(module.named_parameters())[named].ndim == 2


@pytest.mark.parametrize(
    ("attempt", "what"),
    [
        (lambda p, w: matrix(p, w[:-1]), "parameter's shape"),
        (lambda p, w: unmatrix(p, w), "2-D view"),
        (lambda p, w: unmatrix(p, matrix(p, w), into=w[:-1]), "into"),
        (lambda p, w: unmatrix(p, matrix(p, w)), "into=tensor"),
        (lambda p, w: unmatrix(p, matrix(p, w).double(), into=w), "dtype"),
        (lambda p, w: unmatrix(p, matrix(p, w).to("meta"), into=w), "device"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(attempt, what):
    parameter = packed_qkv(2, 2, 3).select("key")
    with pytest.raises(ViewError, match=what):
        attempt(parameter, torch.randn(parameter.shape))


def test_the_fixes_of_a_wrong_home_and_a_missing_rest_work():
    parameter, w = packed_qkv(2, 2, 3).select("key"), torch.randn(12, 3)
    m = matrix(parameter, w).double()
    with pytest.raises(ViewError) as error:
        unmatrix(parameter, m, into=w)
    assert error.value.fix == "pass matrix.to(into)"
    assert torch.equal(unmatrix(parameter, m.to(w), into=w), w)


def test_a_part_that_cuts_through_groups_is_refused():
    whole = transposed(2, 2, [1], groups=2)
    for units in [(1, 2), (0, 2), (0, 1, 2), (1, 0, 2, 3)]:
        cut = record(
            "transposed_conv", whole.shape, whole.axes, groups=2, parts={"cut": Part(0, units)}
        ).select("cut")
        with pytest.raises(ViewError, match="cuts through groups"):
            matrix_shape(cut)
    for units, shape in [((0, 1), (2, 2)), ((1,), (2, 1)), ((2, 3, 0, 1), (4, 2))]:
        fits = record(
            "transposed_conv", whole.shape, whole.axes, groups=2, parts={"cut": Part(0, units)}
        ).select("cut")
        w = numbered(whole.shape)
        assert matrix(fits, w).shape == matrix_shape(fits) == shape
        assert torch.equal(unmatrix(fits, matrix(fits, w), into=w), w)
