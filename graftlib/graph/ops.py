"""What the ops of the captured vocabulary do to axes, as far as this room asks.

In: an ATen overload. Out: its plain name, and whether it only moves elements (`SHAPE`), keeps each feature at its
place (`ELEMENTWISE`, `ACTIVATIONS`), folds features (`REDUCING`), or makes new ones from a weight (`WEIGHTED`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

__all__ = [
    "ACTIVATIONS",
    "ELEMENTWISE",
    "READERS",
    "REDUCING",
    "SHAPE",
    "WEIGHTED",
    "Weighted",
    "argument",
    "keeps_features",
    "moved_args",
    "name_of",
    "words",
]


def words(text: str) -> frozenset[str]:
    """The set of the words in `text`."""
    return frozenset(text.split())


SHAPE = words("""
    alias broadcast_to chunk clone contiguous detach expand expand_as flatten getitem index index_select
    lift_fresh_copy moveaxis movedim narrow numpy_T permute repeat repeat_interleave reshape reshape_as select
    slice split split_with_sizes squeeze swapaxes t tensor_split to transpose type_as unbind unflatten
    unsafe_chunk unsafe_split unsqueeze view view_as _reshape_alias _to_copy _unsafe_view mT flip roll pad cat
    concat concatenate stack view_as_complex view_as_real
""")
ELEMENTWISE = words("""
    add add_ sub sub_ rsub mul mul_ div div_ neg pow square rsqrt sqrt reciprocal dropout dropout_ where
    masked_fill masked_fill_ clamp clamp_min native_dropout layer_norm rms_norm native_layer_norm batch_norm
    group_norm instance_norm
""")
ACTIVATIONS = words("""
    relu relu_ gelu silu silu_ hardswish hardswish_ hardtanh hardtanh_ sigmoid sigmoid_ tanh tanh_ leaky_relu
    leaky_relu_ elu elu_ softplus mish relu6 exp
""")
REDUCING = words("mean sum var var_mean std norm linalg_vector_norm amax amin")


@dataclass(frozen=True)
class Weighted:
    """How an op makes new features from a weight.

    Attributes:
        input: position of the argument with the old features.
        weight: position of the weight.
        bias: position of the bias; None where it has none.
        features: axis of the features, in the input and in the result.
        out_axis: axis of the weight that the new features stand on.
        in_axis: axis of the weight that the old features stand on.
    """

    input: int
    weight: int
    bias: int | None
    features: int
    out_axis: int
    in_axis: int


_LINEAR = Weighted(0, 1, 2, features=-1, out_axis=0, in_axis=1)
_PRODUCT = Weighted(0, 1, None, features=-1, out_axis=1, in_axis=0)
_CONVOLUTION = Weighted(0, 1, 2, features=1, out_axis=0, in_axis=1)
WEIGHTED: dict[str, Weighted] = {
    "linear": _LINEAR,
    "addmm": Weighted(1, 2, 0, features=-1, out_axis=1, in_axis=0),
    "mm": _PRODUCT,
    "matmul": _PRODUCT,
    "conv1d": _CONVOLUTION,
    "conv2d": _CONVOLUTION,
    "conv3d": _CONVOLUTION,
}

_AFFINE = {"2": "gain", "3": "shift"}
_CONV = {"1": "weight", "2": "bias"}
_CELL = {"2": "weight", "3": "weight", "4": "bias", "5": "bias"}
# op -> the arguments that only weights are given for -> their role. Lists of weights end in ``.*``.
READERS: dict[str, dict[str, str]] = {
    "linear": {"1": "weight", "2": "bias"},
    "addmm": {"2": "weight"},
    "conv1d": _CONV,
    "conv2d": _CONV,
    "conv3d": _CONV,
    "convolution": _CONV,
    "conv_transpose1d": _CONV,
    "conv_transpose2d": _CONV,
    "conv_transpose3d": _CONV,
    "embedding": {"0": "weight"},
    "embedding_bag": {"0": "weight"},
    "layer_norm": _AFFINE,
    "native_layer_norm": _AFFINE,
    "group_norm": _AFFINE,
    "rms_norm": {"2": "gain"},
    "batch_norm": {"1": "gain", "2": "shift"},
    "instance_norm": {"1": "gain", "2": "shift"},
    "prelu": {"1": "weight"},
    "lstm": {"2.*": "weight"},
    "gru": {"2.*": "weight"},
    "rnn_tanh": {"2.*": "weight"},
    "rnn_relu": {"2.*": "weight"},
    "lstm_cell": _CELL,
    "gru_cell": _CELL,
    "rnn_tanh_cell": _CELL,
    "rnn_relu_cell": _CELL,
    "bilinear": {"2": "weight", "3": "bias"},
}


def name_of(node: fx.Node) -> str:
    """``aten.add_.Tensor`` -> ``add_``; ``""`` for a node that calls nothing.

    Ops of other namespaces keep it: ``torchvision.nms``.
    """
    if node.op != "call_function":
        return ""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return str(getattr(node.target, "__name__", node.target))
    space, name = schema.name.split("::")
    return str(name) if space == "aten" else f"{space}.{name}"


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument however it was passed."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def moved_args(node: fx.Node) -> list[fx.Node]:
    """The nodes whose elements an op passes on; ``view_as`` asks its second argument only for a shape."""
    if name_of(node).endswith("_as") or keeps_features(node):
        return node.all_input_nodes[:1]
    return node.all_input_nodes


def keeps_features(node: fx.Node) -> bool:
    """Whether an op is a depthwise convolution: each feature is made of the positions of the same feature alone."""
    if name_of(node) not in ("conv1d", "conv2d", "conv3d"):
        return False
    given: Any = argument(node, 0, "input")
    weight: Any = argument(node, 1, "weight")
    return bool(
        given.meta["val"].shape[1] == weight.meta["val"].shape[0] == argument(node, 6, "groups", 1)
    )
