"""Pull a target towards the weights of a source of its own family, carried into the target's order of units.

In: a mapping of two models of one family, of whatever widths and kernels. Out: an adapter for `graftlib.attach` whose
every transfer moves each linked weight a fixed share of the way to its counterpart in the source. Always true: which
entry reads which is decided once, when the graft is attached, for all tensors of an axis class alike; an entry without
a counterpart, and one that equals it, keeps its bits. There is nothing to learn; the pull ends where the graft's
cycle does. Elsewhere: matching (`assembly.align`), the choice of units without it (`assembly.transplant`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from graftlib import Mapping
from graftlib.arguments import Share
from graftlib.errors import GraftError
from graftlib.graft import Adapter, Link, LinkedMatrix
from graftlib.match import Pair, matrix, unmatrix

from ._options import chosen, must_be
from .assembly import Alignment, align, problem
from .assembly.transplanting import largest

__all__ = ["AlignedPull"]


class AlignedPull(Adapter):
    """W <- W + share (S - W), S being the source's weight in the target's order of units.

    Use it early and let it end: ``cycle=TransferCycle(every=1, stop=0.1)`` pulls before every step of the first tenth
    of training, and from then on costs nothing.

    Args:
        mapping: the one that is attached; every link goes forward, and no target has two.
        share: of the way, above 0 to 1, at each transfer.
        units: which unit of the source one of the target reads. ``"largest"``: those of largest weights, in the
            source's order, as `transplant` takes them; right for a target that is fresh. ``"matched"``: those whose
            weights are most like the target's (`assembly.align`); right for one that was trained.

    Raises:
        GraftError: an option out of its range.
    """

    def __init__(
        self,
        mapping: Mapping,
        *,
        share: float = 0.5,
        units: Literal["largest", "matched"] = "largest",
    ) -> None:
        if not isinstance(mapping, Mapping):
            raise GraftError(
                f"AlignedPull takes the mapping first, not {type(mapping).__name__}.",
                why="which units belong together is read from the two models, not from single matrices",
                fix="attach(AlignedPull(mapping), mapping)",
            )
        fix = "give a number above 0 and at most 1, for example share=0.5"
        must_be(Share, "share", share, "is no share of the way.", fix)
        chosen("units", units, ("largest", "matched"))
        self.mapping, self.share, self.units = mapping, float(share), units

    def build(self, matrices: Sequence[LinkedMatrix], links: Sequence[Link]) -> nn.Module:
        """See `Adapter.build`; the module has no parameters, and its buffers say which entry reads which.

        Raises:
            GraftError: another mapping is attached, a link goes backward, a target has two sources, or the axes of
                two linked weights cannot be paired.
        """
        self._check(matrices, links)
        alignment = self.alignment()
        pairs = self.mapping.pairs
        entries = [_entries(alignment, pair) for pair in pairs]
        alone = [
            str(pair) for pair, each in zip(pairs, entries, strict=True) if not (each > 0).any()
        ]
        if alone:
            reasons = dict(alignment.problem.refused)
            raise GraftError(
                "the source has nothing that these links could pull towards.",
                where={"links": "; ".join(alone), **{str(k): v for k, v in reasons.items()}},
                why="their axes are made differently, or are tied to others that are",
                fix="leave these links out of the mapping",
            )
        return _Pull(links, entries, self.share)

    def alignment(self) -> Alignment:
        """Which unit reads which, from the weights of both models as they are now."""
        source, target = self.mapping.source, self.mapping.target
        task = problem(target, source, mapping=self.mapping)
        if self.units == "largest":
            return largest(task, source)
        states = [
            {name: value.detach().cpu() for name, value in each.model.state_dict().items()}
            for each in (target, source)
        ]
        return align(task, *states)

    def _check(self, matrices: Sequence[LinkedMatrix], links: Sequence[Link]) -> None:
        names = [
            (f"source:{pair.source.address}", f"target:{pair.target.address}")
            for pair in self.mapping.pairs
        ]
        if [(matrices[x.source].name, matrices[x.target].name) for x in links] != names:
            raise GraftError(
                "AlignedPull was made for other links than these.",
                where={"made for": names, "attached": [link.name for link in links]},
                fix="attach(AlignedPull(mapping), mapping), with links that go forward",
            )
        if len({link.target for link in links}) < len(links):
            raise GraftError(
                "a target has several sources, and a pull goes towards one.",
                where={"links": [link.name for link in links]},
                fix="link each target once",
            )

    def __repr__(self) -> str:
        return f"AlignedPull(share={self.share}, units={self.units!r})"


def _entries(alignment: Alignment, pair: Pair) -> Tensor:
    """(rows, columns) int32: for each entry of a target matrix 1 + the source entry that it reads, row by row; or 0."""
    source, target = pair.source, pair.target
    count = torch.zeros(source.shape, dtype=torch.int64)
    size = matrix(source, count).numel()
    shape = matrix(source, count).shape
    numbers = unmatrix(source, torch.arange(1, size + 1).view(shape), into=count)
    # Other tensors of the source that the same target tensor reads hold no entry of this matrix.
    state = {
        each.source: numbers
        if each.source == source.fqn
        else torch.zeros(each.source_shape, dtype=torch.int64)
        for each in alignment.problem.pairs
        if each.base == target.fqn
    }
    if not state:
        return torch.zeros(matrix(target, torch.zeros(target.shape)).shape, dtype=torch.int32)
    carried = dict(alignment.each(state, only={target.fqn}))[target.fqn]
    return matrix(target, carried).to(torch.int32)


class _Pull(nn.Module):
    def __init__(self, links: Sequence[Link], entries: Sequence[Tensor], share: float) -> None:
        super().__init__()
        self.links = sorted(range(len(links)), key=lambda i: links[i].target)
        self.ends = [(link.source, link.target) for link in links]
        self.share = share
        for i, each in enumerate(entries):
            self.register_buffer(f"reads{i}", (each.flatten() - 1).clamp(min=0))
            self.register_buffer(f"has{i}", each > 0)

    def forward(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        """One (rows, columns) tensor per linked matrix -> one per matrix that is written, in order."""
        return [self._pulled(matrices, i) for i in self.links]

    def _pulled(self, matrices: Sequence[Tensor], i: int) -> Tensor:
        source, target = (matrices[each] for each in self.ends[i])
        reads, has = (cast(Tensor, getattr(self, f"{name}{i}")) for name in ("reads", "has"))
        carried = source.flatten().index_select(0, reads).view(target.shape)
        moves = has & (carried != target)  # a signed zero is no distance
        return torch.where(moves, torch.lerp(target, carried, self.share), target)
