"""Attributes that say a size and go stale when a tensor gets another one.

In: a model whose tensors change. Out: torch's own layers set to what their tensors say; for other modules, what
attributes of known names are to say. Elsewhere: attributes that the code computes with, whatever their names
(`equations`).
"""

from __future__ import annotations

import functools
from collections.abc import Container, Iterable, Mapping
from math import prod
from typing import Any

from torch import Tensor, nn

from .._torch_private import Conv, Norm
from ..graph.axes import AxisClass, Member
from ..graph.ops import words
from ..graph.skeleton import modules_of
from .edits import Rows, owners_of, resize, tensor_of
from .refusal import SurgeryError
from .tagged import Place

__all__ = ["cut_rows", "labels", "refresh_layers"]

# The modules nearest to a tensor that may say its size.
_REACH = 3

# Names for a number of heads, for what is inside of one, for how many queries share a key, and for a width, in modules
# that are not torch's own.
_HEADS = words("num_heads num_attention_heads n_heads n_head nhead heads num_key_value_heads")
_INNER = words(
    """
    head_dim attention_head_size key_value_proj_dim d_kv dim_per_head head_size d_head dim_head
    attention_head_dim
    """
)
_REPEATS = words("num_key_value_groups num_queries_per_kv n_rep")
_WIDTHS = words(
    """
    embed_dim inner_dim all_head_size attn_dim dim split_size attention_dim hidden_dim
    intermediate_size hidden_size d_model kdim vdim d_ff ffn_dim mlp_dim hidden_features nx nf
    n_embd n_inner dim_feedforward encoder_ffn_dim decoder_ffn_dim
    """
)
_NAMES = dict.fromkeys((*_HEADS, *_INNER, *_REPEATS, *_WIDTHS))


def _refresh_layer(module: nn.Module, groups: int | None = None, *, name: str = "") -> None:
    """Set the sizes of one of torch's layers from its tensors.

    Args:
        module: any module; those that are none of torch's layers stay.
        groups: the new number of groups, of a grouped convolution or a group norm; None where it stays.
        name: of the module, for messages.

    Raises:
        SurgeryError: the layers of a recurrent module disagree in a size that they share.
    """
    layer: Any = module
    weight = _weight(module)
    if isinstance(module, nn.Linear) and weight is not None:
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(module, Conv) and weight is not None:
        if layer.groups == layer.in_channels == layer.out_channels and layer.groups > 1:
            groups = weight.shape[0]  # depthwise, whatever the class of its channels is a part of
        layer.groups = groups or layer.groups
        first, second = weight.shape[0], weight.shape[1] * layer.groups
        layer.in_channels, layer.out_channels = (
            (first, second) if layer.transposed else (second, first)
        )
    elif isinstance(module, Norm):
        tensor = weight if weight is not None else module._buffers.get("running_mean")
        if tensor is not None:
            layer.num_features = tensor.shape[0]
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and weight is not None:
        layer.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm) and weight is not None:
        layer.num_channels, layer.num_groups = weight.shape[0], groups or layer.num_groups
    elif isinstance(module, nn.Embedding) and weight is not None:
        layer.num_embeddings, layer.embedding_dim = weight.shape
    elif isinstance(module, nn.PReLU) and weight is not None:
        layer.num_parameters = weight.shape[0]
    elif isinstance(module, nn.RNNBase):
        _refresh_recurrent(module, name)
    elif isinstance(module, nn.RNNCellBase):
        _refresh_cell(module)
    elif type(module).__name__ == "Conv1D" and hasattr(module, "nf") and weight is not None:
        layer.nx, layer.nf = weight.shape  # Hugging Face's linear layer, stored transposed


def _weight(module: nn.Module) -> Tensor | None:
    """What says the shape of the weight; of one that a norm is divided out of (`weight_norm`), the directions."""
    weights: dict[str, Any] = dict(module._parameters)
    held = getattr(module._modules.get("parametrizations"), "weight", None)
    if held is not None:
        weights |= {
            "weight": held._parameters.get("original"),
            "weight_v": held._parameters.get("original1"),
        }
    weight: Tensor | None = weights.get("weight")
    return weights.get("weight_v") if weight is None else weight


def _refresh_recurrent(module: nn.RNNBase, module_name: str) -> None:
    layer: Any = module
    gates = {"LSTM": 4, "GRU": 3}.get(layer.mode, 1)
    hidden = {name: layer._parameters.get(name) for name in layer._flat_weights_names}
    if missing := [name for name, tensor in hidden.items() if tensor is None]:
        raise SurgeryError(
            f"'{module_name}' makes '{missing[0]}' from other parameters, and cannot have other sizes.",
            where={"module": f"{type(module).__name__} '{module_name}'"},
            why="a recurrent layer of torch runs on a list of its parameters, which no parametrization reaches",
            fix="remove the parametrization first, or leave the units of this layer as they are",
            module=module_name,
        )
    sizes = {t.shape[0] // gates for name, t in hidden.items() if name.startswith("weight_hh")}
    projections = {t.shape[0] for name, t in hidden.items() if name.startswith("weight_hr")}
    for what, prefix, sizes_of in (
        ("hidden size", "weight_hh", sizes),
        ("projection", "weight_hr", projections),
    ):
        if len(sizes_of) > 1:
            raise SurgeryError(
                f"the layers and directions of '{module_name}' share one {what}, and cannot have "
                f"{' and '.join(map(str, sorted(sizes_of)))}.",
                where={"module": f"{type(module).__name__} '{module_name}'"},
                fix="give the same number of units to the classes of all of "
                + ", ".join(f"'{weight}'" for weight in hidden if weight.startswith(prefix)),
                module=module_name,
            )
    if projections and max(projections) >= min(sizes):
        raise SurgeryError(
            f"the projection of '{module_name}' has {max(projections)} units, and must be narrower than the hidden "
            f"size of {min(sizes)}.",
            where={"module": f"{type(module).__name__} '{module_name}'"},
            fix="leave the hidden units more than the projection, or prune both",
            module=module_name,
        )
    layer.input_size = layer.weight_ih_l0.shape[1]
    (layer.hidden_size,) = sizes
    if projections:
        (layer.proj_size,) = projections
    layer._init_flat_weights()


def _refresh_cell(module: nn.RNNCellBase) -> None:
    layer: Any = module
    layer.input_size, layer.hidden_size = layer.weight_ih.shape[1], layer.weight_hh.shape[1]


def cut_rows(model: nn.Module, rows: Rows) -> None:
    """Keep some places of axes that no class moves, in place; which ones says the caller. Torch's layers follow.

    Args:
        model: whose tensors are replaced.
        rows: as in `edits.resize`.
    """
    resize(model, rows)
    owners = owners_of(model)
    for fqn in dict.fromkeys(fqn for fqn, _ in rows):
        for module, _, _ in owners[id(tensor_of(model, fqn))]:
            _refresh_layer(module, name=fqn.rpartition(".")[0])


def labels(
    model: nn.Module,
    lengths: Mapping[tuple[str, int], tuple[int, int]],
    sizes: Mapping[AxisClass, int],
    classes: Iterable[AxisClass],
) -> dict[Place, int]:
    """What attributes of known names say of a size, at the modules nearest to a tensor, and what they are to say.

    Args:
        model: as it is before the edit.
        lengths: (FQN, axis) -> how long the axis is, and will be.
        sizes: class -> how many units it will have.
        classes: all of the model's.
    """
    known: dict[
        str, list[tuple[str, int]]
    ] = {}  # of most models no module says a size under such a name
    for path, module in modules_of(model, every_name=True):
        fields = module.__dict__
        if not _NAMES.keys().isdisjoint(fields):
            known[path] = [(name, fields[name]) for name in _NAMES if type(fields.get(name)) is int]
    if not known:
        return {}
    said: dict[Place, int] = {}

    def say(fqn: str, names: Container[str], old: int, new: int) -> None:
        path = fqn.split(".")[:-1]
        for end in range(len(path), max(len(path) - _REACH, -1), -1):
            module = ".".join(path[:end])
            for name, value in known.get(module, ()):
                if value == old and name in names:
                    said.setdefault((module, (name,)), new)

    for (fqn, _), (old, new) in lengths.items():
        say(fqn, _WIDTHS, old, new)
    groups = {m.block for each in classes for m in each.members if m.position == 0}
    for each, size in sizes.items():
        for member in each.members:
            if len(member.factors) > 1:
                say(member.fqn, _names(member, groups), each.size, size)
    return said


def _names(member: Member, groups: Container[object]) -> Container[str]:
    """What the size of a factor is called: heads, those in a group of them, the inside of one."""
    if member.position == len(member.factors) - 1:
        return _INNER
    return _REPEATS if member.position and member.block in groups else _HEADS


def refresh_layers(model: nn.Module, sizes: Mapping[AxisClass, int]) -> None:
    """Set what torch's own layers say of their tensors, in place, after the tensors got these sizes.

    Raises:
        SurgeryError: layers of a recurrent module disagree; ``module`` is its name.
    """
    owners = owners_of(model)

    @functools.cache
    def modules_with(tensor: str) -> tuple[str, list[nn.Module]]:
        fqn, parametrized, _ = tensor.partition(".parametrizations.")
        if parametrized:
            return fqn, [model.get_submodule(fqn)]
        held = owners[id(tensor_of(model, tensor))]
        return fqn.rpartition(".")[0], [module for module, _, _ in held]

    layers: dict[nn.Module, tuple[str, int | None]] = {}
    for each, size in sizes.items():
        for member in each.members:
            fqn, modules = modules_with(member.fqn)
            for module in modules:
                name, groups = layers.get(module, (fqn, None))
                layers[module] = name, _groups(module, member, size) or groups
    for module, (name, groups) in layers.items():
        _refresh_layer(module, groups, name=name)


def _groups(module: nn.Module, member: Member, count: int) -> int | None:
    """The new number of groups, where the class is the groups of this module, or a factor of their number."""
    if member.axis:
        return None
    fields = vars(module)
    old: Any = fields.get("groups") or fields.get("num_groups")
    if not old or old == 1:
        return None
    sizes = [
        prod(member.factors[:end]) for end in range(member.position + 1, len(member.factors) + 1)
    ]
    return old // member.factors[member.position] * count if old in sizes else None
