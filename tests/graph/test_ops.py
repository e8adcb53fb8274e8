"""What the table says that ops do to features, held against what torch does: one row an entry."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx

from graftlib.graph import ops
from graftlib.graph.walk import follow, reach, users

aten = torch.ops.aten
X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)) + 3
IMAGE = X.reshape(2, 3, 4, 1)
# Name of an entry -> the arguments behind its input, for those that have some; features stand on the last axis.
KEEPS = {
    **dict.fromkeys(("neg", "square", "rsqrt", "sqrt", "reciprocal"), ()),
    **dict.fromkeys(("add", "sub", "rsub", "mul", "div", "pow", "pow.Tensor_Scalar"), (2.0,)),
    **dict.fromkeys(("clamp", "clamp_min"), (1.0,)),
    **dict.fromkeys(("clamp.Tensor", "clamp_min.Tensor"), (torch.ones(()),)),
    **dict.fromkeys(("masked_fill", "masked_fill_"), (torch.zeros(2, 3, 1).bool(), 0.0)),
    "dropout": (0.5, False),
    "native_dropout": (0.5, False),
    "layer_norm": ([4],),
    "native_layer_norm": ([4], None, None, 1e-5),
    "rms_norm": ([4],),
    "where": (torch.ones(()), torch.ones(())),
    "where.self": (torch.ones(()), torch.ones(())),
    "where.default": (torch.ones(()), torch.ones(())),
}
# Their features stand on the second axis.
CHANNELS = {
    "batch_norm": (None, None, torch.zeros(3), torch.ones(3), False, 0.1, 1e-5, True),
    "instance_norm": (None, None, None, None, True, 0.1, 1e-5, True),
    "group_norm": (1,),
}
FOLDS = dict.fromkeys(
    ["sum", "mean", "std", "var", "norm", "linalg_vector_norm", "amax", "amin", "var_mean"], ()
)
MOVES = {
    **dict.fromkeys(("alias", "contiguous", "detach", "lift_fresh_copy", "clone"), ()),
    "to": (torch.float64,),
    "_to_copy": (),
    "type_as": (X,),
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), ([3, 8],)),
    "_reshape_alias": ([3, 8], [8, 1]),
    "flatten": (),
    "ravel": (),
    "atleast_1d": (),
    "unflatten": (2, [2, 2]),
    **dict.fromkeys(("view_as", "reshape_as"), (X.reshape(4, 6),)),
    "squeeze": (),
    "unsqueeze": (0,),
    "permute": ([2, 0, 1],),
    **dict.fromkeys(("transpose", "movedim", "moveaxis", "swapaxes", "swapdims"), (0, 2)),
    **dict.fromkeys(("mT", "mH", "adjoint"), ()),
    **dict.fromkeys(("expand", "broadcast_to"), ([5, 2, 3, 4],)),
    "expand_as": (X.expand(5, 2, 3, 4),),
    **dict.fromkeys(("split", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split"), (2, -1)),
    **dict.fromkeys(
        ("split_with_sizes", "split_with_sizes_copy", "unsafe_split_with_sizes"), ([1, 3], -1)
    ),
    "split_copy": (2, -1),
    **dict.fromkeys(("unbind", "unbind_copy"), (-1,)),
    **dict.fromkeys(("select", "select_copy"), (-1, 1)),
    **dict.fromkeys(("slice", "slice_copy"), (-1, 1, 3)),
    **dict.fromkeys(("narrow", "narrow_copy"), (-1, 1, 2)),
    "index_select": (2, torch.tensor([3, 0])),
    **dict.fromkeys(("index", "_unsafe_index"), ([None, torch.tensor([1, 1])],)),
    "flip": ([0],),
    **dict.fromkeys(("fliplr", "flipud", "rot90"), ()),
    "roll": ([1], [2]),
    **dict.fromkeys(("repeat", "tile"), ([1, 2, 1],)),
    "repeat_interleave": (2, 1),
    "pad": ([0, 1], "reflect"),
}
# Of several tensors, of a tuple, of matrices, of complex numbers.
OTHERS = {
    **dict.fromkeys(
        ("cat", "concat", "concatenate", "stack"), lambda name: getattr(aten, name)([X, -X])
    ),
    "getitem": lambda name: X[1],
    "t": lambda name: X[0].t(),
    "numpy_T": lambda name: aten.numpy_T(X[0]),
    "matrix_H": lambda name: aten.matrix_H(X[0]),
    "view_as_complex": lambda name: aten.view_as_complex(X.reshape(2, 3, 2, 2)),
    "view_as_real": lambda name: aten.view_as_real(torch.complex(X, -X)),
}


def entries(does: str) -> set[str]:
    names = {name for name in ops.rules() if ops._rules[name].does == does}
    return {name.removeprefix("aten.") for name in names}


def called(name: str, x: Tensor, args: tuple) -> Tensor:
    packet, _, overload = name.partition(".")
    op = getattr(aten, packet)
    if overload and overload != "default":
        op = getattr(op, overload)
    if packet == "where":
        return op(x > 3, x, args[1])
    out = op(x.clone(), *args)
    return out[0] if isinstance(out, (tuple, list)) else out


def test_every_entry_is_a_row():
    activates = entries("activates")
    assert entries("keeps") == {*KEEPS, *CHANNELS}
    assert entries("folds") == {*FOLDS}
    assert entries("moves") == {*MOVES, *OTHERS}
    assert len(activates) > 10


@pytest.mark.parametrize("name", [*KEEPS, *sorted(entries("activates"))])
def test_each_feature_stays_at_its_place(name):
    order = torch.tensor([2, 0, 3, 1])
    args = KEEPS.get(name, ())
    torch.testing.assert_close(called(name, X[..., order], args), called(name, X, args)[..., order])


@pytest.mark.parametrize("name", CHANNELS)
def test_each_channel_stays_at_its_place(name):
    order, args = torch.tensor([2, 0, 1]), CHANNELS[name]
    torch.testing.assert_close(
        called(name, IMAGE[:, order], args), called(name, IMAGE, args)[:, order]
    )


@pytest.mark.parametrize("name", FOLDS)
def test_what_is_folded_has_no_order(name):
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(called(name, X[..., order], ()), called(name, X, ()))


@pytest.mark.parametrize("name", [*MOVES, *OTHERS])
def test_a_move_computes_nothing(name):
    moved = called(name, X, MOVES[name]) if name in MOVES else OTHERS[name](name)
    moved = torch.view_as_real(moved.resolve_conj()) if moved.is_complex() else moved
    assert {*moved.float().flatten().tolist()} <= {*X.flatten().tolist(), *(-X).flatten().tolist()}


def test_a_wrong_row_is_seen():
    """Both laws are able to fail."""
    order = torch.tensor([2, 0, 3, 1])
    assert not torch.allclose(X[..., order].cumsum(-1), X.cumsum(-1)[..., order])
    assert not {*X.square().flatten().tolist()} <= {*X.flatten().tolist()}


def chain() -> tuple[fx.Graph, list[fx.Node]]:
    """a -> b -> d, a -> c -> d."""
    graph = fx.Graph()
    a = graph.placeholder("a")
    b, c = (graph.call_function(torch.neg, (a,)) for _ in range(2))
    return graph, [a, b, c, graph.call_function(torch.add, (b, c))]


def test_a_walk_meets_each_node_once_and_stops_where_it_must():
    _, (a, b, c, d) = chain()
    assert list(reach([a], users, lambda node: True)) == [b, c, d]
    assert list(reach([a], users, lambda node: False)) == [b, c]


def test_what_is_carried_comes_along_every_way():
    _, (a, b, c, d) = chain()
    steps = follow(a, 0, lambda user, here, value: value + 1 if user is not d else None)
    assert [(u, h, v, on) for u, h, v, on in steps] == [
        (b, a, 0, True),
        (c, a, 0, True),
        (d, b, 1, False),
        (d, c, 1, False),
    ]
