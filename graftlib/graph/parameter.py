"""What is known of one parameter: its name, kind, role, axes, depth, and the parts it packs.

An **address** is an FQN, or an FQN and a part: ``h.0.attn.c_attn.weight::value``.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace

import torch

from ..errors import MatchError, ViewError, nearest, shown

__all__ = ["KINDS", "Parameter", "Part", "split_address"]

KINDS = (
    "linear",
    "conv",
    "depthwise",
    "grouped",
    "transposed_conv",
    "embedding",
    "recurrent",
    "norm",
    "bias",
    "other",
)


@dataclass(frozen=True)
class Part:
    """Units of one axis that belong together: the query rows of a packed qkv, one gate of an LSTM.

    Attributes:
        axis: the axis of the parameter that is cut.
        units: positions on that axis, head by head where there are heads (head 0's units first).
        heads: how many heads `units` splits into evenly; None where heads mean nothing.
        role: the role of the part, for example ``"attention.query"``.
    """

    axis: int
    units: range | tuple[int, ...]
    heads: int | None = None
    role: str | None = None

    def head(self, i: int) -> Part:
        """Head `i` of this part; IndexError where there is none."""
        if self.heads is None or not 0 <= i < self.heads:
            raise IndexError(i)
        size = len(self.units) // self.heads
        return Part(self.axis, self.units[i * size : (i + 1) * size], None, self.role)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a traced model, or a part of one.

    Attributes:
        fqn: the fully qualified name in the user's own module.
        shape: of the whole tensor, whatever the part.
        dtype: of the tensor.
        kind: one of `KINDS`, by the op that reads it.
        role: ``"weight"``, ``"bias"``, ``"gain"``, ``"shift"``, or ``"attention.query"``, ``.key``, ``.value``,
            ``.output``, ``.fused`` for the weights of an attention's projections.
        layer: FQN of the module that owns it.
        depth: 0.0 (first) to 1.0 (last), by the longest chain of weighted layers; None where the forward pass
            never reads it.
        axes: the meaning of each axis: ``out in kh kw`` for a conv, ``out in`` for a linear layer,
            ``in out`` where it is stored transposed (transposed convs, Hugging Face's Conv1D).
        tied_to: FQN of the parameter that is the same tensor and comes first in the model; else None.
        groups: of a grouped or depthwise convolution; else 1.
        heads: of an attention projection that is not packed; else None.
        parts: name -> units, for what is packed: query, key, value; an LSTM's or GRU's gates; one entry named
            ``"heads"`` where the whole parameter is made of heads.
        part: the name of the part this record stands for, None for the whole.
    """

    fqn: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: str
    role: str
    layer: str
    depth: float | None
    axes: tuple[str, ...]
    tied_to: str | None = None
    groups: int = 1
    heads: int | None = None
    parts: Mapping[str, Part] = field(default_factory=dict, compare=False)
    part: str | None = None

    @property
    def address(self) -> str:
        """The FQN, with ``::part`` where this is a part."""
        return self.fqn if self.part is None else f"{self.fqn}::{self.part}"

    @property
    def selection(self) -> Part | None:
        """The units that this record stands for; None for the whole parameter."""
        return None if self.part is None else self._resolve(self.part)

    def select(self, part: str) -> Parameter:
        """The same parameter narrowed to `part`.

        Args:
            part: ``query``, ``key``, ``value``; a gate's name; ``head[3]``; ``value.head[3]``; ``group[1]``.

        Raises:
            ViewError: the parameter has no such part; the message lists those it has.
        """
        units = self._resolve(part)
        return replace(self, part=part, role=units.role or self.role)

    def _resolve(self, part: str) -> Part:
        if part in self.parts:
            return self.parts[part]
        if match := re.fullmatch(r"(?:(.+)\.)?head\[(\d{1,9})\]", part):
            whole = self.parts.get(match[1] or "heads")
            if whole is not None:
                try:
                    return whole.head(int(match[2]))
                except IndexError:
                    pass
        if match := re.fullmatch(r"group\[(\d{1,9})\]", part):
            i = int(match[1])
            if self.groups > 1 and i < self.groups:
                size = self.shape[0] // self.groups
                return Part(0, range(i * size, (i + 1) * size))
        raise ViewError(
            f"{shown(self.fqn)} {self.shape} has no part {shown(part)}.",
            why=f"it is a {self.kind} parameter with role {self.role}",
            near=nearest(part, self._part_names()),
            fix="use one of: "
            + (", ".join(self._part_names()) or "the whole parameter, without '::'"),
            parameter=self.fqn,
            part=part,
        )

    def _part_names(self) -> list[str]:
        names = [name for name in self.parts if name != "heads"]
        for name, part in self.parts.items():
            if part.heads:
                prefix = "" if name == "heads" else f"{name}."
                names.append(f"{prefix}head[0..{part.heads - 1}]")
        if self.groups > 1:
            names.append(f"group[0..{self.groups - 1}]")
        return names


def split_address(address: str, names: Container[str]) -> tuple[str, str | None]:
    """The name and the part of an address; None for the whole parameter.

    A name may hold ``::`` itself, so the longest beginning that is one of `names`, or a module with a weight among
    them, is the name; where there is none, what stands before the first ``::``.

    Raises:
        MatchError: `address` is no text.

    >>> split_address("a::b::query", {"a::b.weight"})
    ('a::b', 'query')
    >>> split_address("c::query", {"a::b.weight"})
    ('c', 'query')
    """
    if not isinstance(address, str):
        raise MatchError(
            f"an address is text, not {shown(address)}.", fix="name a parameter: 'fc.weight'"
        )
    ends = [len(address), *(colons.start() for colons in re.finditer("::", address))]
    for end in sorted(ends, reverse=True)[:_MOST_COLONS]:
        name = address[:end]
        if name in names or f"{name}.weight" in names:
            return name, address[end + 2 :] or None
    name, colons, part = address.partition("::")
    return name, part if colons else None


_MOST_COLONS = 100
