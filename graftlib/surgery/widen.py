"""`widen`: more units in axis classes, without a change of the function.

A new unit is made like one that is there, or of zeros, and is read with weights of zero, so that training can put it to
use. Always true: the wider model was run next to the old one, in double precision, and gave the same; where that cannot
be, the edit is refused with the reason.
Elsewhere: what a new unit is in each tensor (`fill`), what must be scaled with the widths (`rescale`).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from math import ceil
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor, nn

from ..arguments import Seed, check
from ..errors import nearest, shown
from ..graph import LayerGraph
from ..graph.axes import AxisClass
from .config import config_state, refresh_config
from .edits import Request, editable, model_of, requested
from .fill import FILLS, Fill, grown
from .fit import fitted
from .lora import refresh_ranks
from .proof import TOLERANCE, prove, unproven
from .refusal import SurgeryError
from .rescale import meets_norm, rescale_norms, rescale_queries, rms_norms, scores_only

__all__ = ["units_like", "widen"]


def widen(
    graph: LayerGraph,
    widths: Mapping[Request, int],
    *,
    fill: str = "like",
    seed: int = 0,
    model: nn.Module | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Add units to classes and keep the function.

    A norm over the new units is kept where it can be: a layer norm (or RMS norm, or group norm inside its groups)
    where every unit is repeated equally often, so at a multiple of the width; an RMS norm at any width with units of
    zero, its gain times sqrt(n / N) and its eps times n / N. Where an attention's scores lie over the units, the
    queries take the factor sqrt(N / n) if the model divides by the width of a head.

    Args:
        graph: from `graftlib.trace`.
        widths: class, its number, or a glob of layers (the classes that they make) -> how many units it shall have,
            at least as many as now.
        fill: what a new unit is. ``"like"``: made as another one is, all being repeated equally often as far as that
            goes, and read with zeros. ``"zero"``: made of zeros and read with zeros; a running variance is 1.
        seed: which units the new ones are made like.
        model: None is the traced one, else another of the same structure.
        inplace: edit the model itself; otherwise a copy is made.

    Returns:
        the edited model: the same modules with larger tensors; the units there were come first.

    Raises:
        SurgeryError: an argument is not what it should be, a class is frozen or unknown, a width is too small, the
            modules do not run with these sizes, or the function would change. The model is as it was.

    Warns:
        SurgeryWarning: the config of a Hugging Face model cannot say the new sizes, or the eps of its norms.
    """
    model = model_of(
        graph, model, inplace, widths=(widths, (Mapping,)), fill=(fill, str), seed=(seed, Seed)
    )
    check(SurgeryError, widths=([*widths.values()], list[Annotated[int, Meta(ge=1, le=10**9)]]))
    if fill not in FILLS:
        raise SurgeryError(
            f"fill is one of {', '.join(map(repr, FILLS))}, not {shown(fill)}.",
            near=nearest(fill, [*FILLS]),
        )
    sizes = requested(graph, widths)
    for each, width in sizes.items():
        if width < each.size:
            raise SurgeryError(
                f"{each.size} units cannot be widened to {width}.", fix="use surgery.prune"
            )
    editable(model, graph, sizes, inplace=True)  # is it the model of the graph?
    before = config_state(model, graph)
    wide = _widened(model, graph, sizes, fill, seed, inplace)
    refresh_ranks(wide)
    refresh_config(wide, before, sizes)
    return wide


def _widened(
    model: nn.Module,
    graph: LayerGraph,
    widths: Mapping[AxisClass, int],
    fill: str,
    seed: int,
    inplace: bool,
) -> nn.Module:
    random = torch.Generator().manual_seed(int(seed))
    units = {each: units_like(each.size, width, random) for each, width in widths.items()}
    fresh = grown(graph, units)
    norms = rms_norms(graph, model, widths) if fill == "zero" else []
    ways = (False, True) if any(scores_only(graph, each) for each in widths) else (False,)
    for last, queries in enumerate(ways, 1):

        def scale(edited: nn.Module, queries: bool = queries) -> None:
            rescale_norms(edited, norms)
            if queries:
                rescale_queries(edited, graph, widths, fresh.rows)

        def finish(edited: nn.Module, scale: Callable[[nn.Module], None] = scale) -> None:
            FILLS[fill](edited, fresh)
            scaled = {norm.fqn for norm in norms}
            _must_agree(model, edited, graph, widths, fresh, fill, scale, scaled)
            scale(edited)

        try:
            return fitted(model, graph, fresh.rows, widths, inplace=inplace, finish=finish)
        except SurgeryError:
            if last == len(ways):
                raise
    raise AssertionError("a way was tried")


def units_like(size: int, width: int, random: torch.Generator) -> Tensor:
    """The old unit that each new place is like: every one is repeated before any is repeated again."""
    orders = [
        torch.randperm(size, generator=random, device="cpu") for _ in range(ceil(width / size) - 1)
    ]
    return torch.cat([torch.arange(size, device="cpu"), *orders])[:width]


def _must_agree(
    model: nn.Module,
    edited: nn.Module,
    graph: LayerGraph,
    widths: Mapping[AxisClass, int],
    fresh: Fill,
    fill: str,
    scale: Callable[[nn.Module], None],
    scaled: Container[str],
) -> None:
    """The wider one is scaled in doubles, too: rounding would be seen."""
    if model is edited:
        return  # the copy has agreed

    def prepare(wide: nn.Module) -> None:
        FILLS[fill](wide, fresh)
        scale(wide)

    proof = prove(graph, model, edited, widths, fresh.rows, prepare)
    error = proof.error
    sizes = ", ".join(f"{each.size} -> {width}" for each, width in widths.items())
    if proof.doubt:
        raise unproven(
            f"units cannot be widened ({sizes}), as nothing proves that the function stays.",
            f"{proof.doubt} on the traced input: a wrong edit would not show",
            where={"class": "; ".join(str(each.members[0]) for each in widths)},
        )
    if error <= TOLERANCE:
        return
    normed = [each for each in widths if meets_norm(graph, each, scaled)]
    even = all(widths[each] % each.size == 0 for each in normed)
    why = "an op looks at all units at once, or one tensor makes and reads them (tied embeddings)"
    fix = "widen a class that no norm goes over, such as the inside of an MLP"
    if normed and not (fill == "like" and even):
        why = "a norm goes over the units: its mean and variance stay where all are repeated equally often"
        fix = f"widen to a multiple of {normed[0].size} with fill='like'"
        if fill == "like":
            fix += "; over an RMS norm alone, fill='zero' takes any width"
    raise SurgeryError(
        f"units cannot be widened ({sizes}) without a change of the function.",
        where={
            "class": "; ".join(str(each.members[0]) for each in normed or widths),
            "relative change": f"{error:.1e}",
        },
        why=why,
        fix=fix,
    )
