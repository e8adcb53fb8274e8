"""Attributes that say a size and go stale when a tensor gets another one.

In: the modules whose tensors changed. Out: their attributes set to what the tensors say. The table knows torch's own
layers; for others, attributes of a known name that held the old size are set, at the module and at those around it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .refusal import SurgeryError

__all__ = [
    "HEADS",
    "INNER",
    "REPEATS",
    "WIDTHS",
    "Set",
    "refresh_heads",
    "refresh_inner",
    "refresh_layer",
    "refresh_repeats",
    "refresh_width",
]

# (holder, attribute) that have been set: a new size may be another class's old one.
Set = set[tuple[int, str]]

# Names for a number of heads, for what is inside of one, for how many queries share a key, and for a width, in modules
# that are not torch's own.
HEADS = (
    "num_heads",
    "num_attention_heads",
    "n_heads",
    "n_head",
    "nhead",
    "heads",
    "num_key_value_heads",
)
INNER = (
    "head_dim",
    "attention_head_size",
    "key_value_proj_dim",
    "d_kv",
    "dim_per_head",
    "head_size",
    "d_head",
    "dim_head",
    "attention_head_dim",
)
REPEATS = ("num_key_value_groups", "num_queries_per_kv", "n_rep")
WIDTHS = (
    "embed_dim",
    "inner_dim",
    "all_head_size",
    "attn_dim",
    "dim",
    "split_size",
    "attention_dim",
    "hidden_dim",
    "intermediate_size",
    "hidden_size",
    "d_model",
    "kdim",
    "vdim",
    "d_ff",
    "ffn_dim",
    "mlp_dim",
    "hidden_features",
    "nx",
    "nf",
    "n_embd",
    "n_inner",
    "dim_feedforward",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
)


def refresh_layer(module: nn.Module, groups: int | None = None, *, name: str = "") -> None:
    """Set the sizes of one of torch's layers from its tensors.

    Args:
        module: any module; those that are none of torch's layers stay.
        groups: the new number of groups, of a grouped convolution or a group norm; None where it stays.
        name: of the module, for messages.

    Raises:
        SurgeryError: the layers of a recurrent module disagree in a size that they share.
    """
    made: Any = module
    weight = module._parameters.get("weight")
    if isinstance(module, nn.Linear) and weight is not None:
        made.out_features, made.in_features = weight.shape
    elif isinstance(module, nn.modules.conv._ConvNd) and weight is not None:
        if made.groups == made.in_channels == made.out_channels and made.groups > 1:
            groups = weight.shape[0]  # depthwise, whatever the class of its channels is a part of
        made.groups = groups or made.groups
        first, second = weight.shape[0], weight.shape[1] * made.groups
        made.in_channels, made.out_channels = (
            (first, second) if made.transposed else (second, first)
        )
    elif isinstance(module, (nn.modules.batchnorm._NormBase,)):
        held = weight if weight is not None else module._buffers.get("running_mean")
        if held is not None:
            made.num_features = held.shape[0]
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and weight is not None:
        made.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm) and weight is not None:
        made.num_channels, made.num_groups = weight.shape[0], groups or made.num_groups
    elif isinstance(module, nn.Embedding) and weight is not None:
        made.num_embeddings, made.embedding_dim = weight.shape
    elif isinstance(module, nn.PReLU) and weight is not None:
        made.num_parameters = weight.shape[0]
    elif isinstance(module, nn.RNNBase):
        _refresh_recurrent(module, name)
    elif isinstance(module, nn.RNNCellBase):
        _refresh_cell(module)
    elif type(module).__name__ == "Conv1D" and hasattr(module, "nf") and weight is not None:
        made.nx, made.nf = weight.shape  # Hugging Face's linear layer, stored transposed


def _refresh_recurrent(module: nn.RNNBase, module_name: str) -> None:
    made: Any = module
    gates = {"LSTM": 4, "GRU": 3}.get(made.mode, 1)
    hidden = {name: made.get_parameter(name) for name in made._flat_weights_names}
    sizes = {t.shape[0] // gates for name, t in hidden.items() if name.startswith("weight_hh")}
    projections = {t.shape[0] for name, t in hidden.items() if name.startswith("weight_hr")}
    for what, prefix, found in (
        ("hidden size", "weight_hh", sizes),
        ("projection", "weight_hr", projections),
    ):
        if len(found) > 1:
            raise SurgeryError(
                f"the layers and directions of '{module_name}' share one {what}, and cannot have "
                f"{' and '.join(map(str, sorted(found)))}.",
                where={"module": f"{type(module).__name__} '{module_name}'"},
                fix="give the same number of units to the classes of all of "
                + ", ".join(f"'{weight}'" for weight in hidden if weight.startswith(prefix)),
            )
    if projections and max(projections) >= min(sizes):
        raise SurgeryError(
            f"the projection of '{module_name}' has {max(projections)} units, and must be narrower than the hidden "
            f"size of {min(sizes)}.",
            where={"module": f"{type(module).__name__} '{module_name}'"},
            fix="leave the hidden units more than the projection, or prune both",
        )
    made.input_size = made.weight_ih_l0.shape[1]
    (made.hidden_size,) = sizes
    if projections:
        (made.proj_size,) = projections
    made._init_flat_weights()


def _refresh_cell(module: nn.RNNCellBase) -> None:
    made: Any = module
    made.input_size, made.hidden_size = made.weight_ih.shape[1], made.weight_hh.shape[1]


def refresh_heads(modules: list[object], old: int, new: int, done: Set) -> None:
    """Set what holds a number of heads in any of the modules."""
    _set(modules, HEADS, old, new, done)


def refresh_inner(modules: list[object], old: int, new: int, done: Set) -> None:
    """Set what holds the width of one head in any of the modules."""
    _set(modules, INNER, old, new, done)


def refresh_repeats(modules: list[object], old: int, new: int, done: Set) -> None:
    """Set what holds how many queries share a key and value in any of the modules."""
    _set(modules, REPEATS, old, new, done)


def refresh_width(modules: list[object], old: int, new: int, done: Set) -> None:
    """Set what holds a width in any of the modules."""
    _set(modules, WIDTHS, old, new, done)


def _set(holders: list[object], names: tuple[str, ...], old: int, new: int, done: Set) -> None:
    for holder in holders:
        for name in names:
            value = holder.__dict__.get(name)
            if type(value) is int and value == old and (id(holder), name) not in done:
                setattr(holder, name, new)
                done.add((id(holder), name))
