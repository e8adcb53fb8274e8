"""What one would change in the demo, all in one place: which layers are linked, by which method, when, for how long.

In: nothing. Out: the names below. `training.py` uses them and holds the three lines that graft.
"""

from __future__ import annotations

from dataclasses import dataclass

from graftlib import Adapter, Mapping, TransferCycle
from graftlib_adapters import MergeNet

from .data import Images

__all__ = ["BUDGETS", "CYCLE", "LEARNING_RATE", "LINKS", "Budget", "adapter", "link"]

LINKS = (("layer4.0.downsample.0", "features.7.conv.2"),)
"""(source, target), patterns as `graftlib.Mapping.link` takes them: the last 1x1 convolution of either residual stream,
like for like in kind and depth, unlike in shape (512x256 and 64x256)."""

CYCLE = TransferCycle(every=4, stop=0.8)
"""A transfer before every fourth step of the target; the last fifth of training is the target's own."""

LEARNING_RATE = 1e-3
"""Of the adapter. With 0 the adapter never learns, and grafted training is plain training, bit for bit."""


def adapter() -> Adapter:
    """The method: MergeNet as it comes. Put another adapter here."""
    return MergeNet()


def link(mapping: Mapping) -> Mapping:
    """Say which parameters exchange knowledge. ``mapping.auto(kind="conv", limit=4)`` would choose by itself."""
    for source, target in LINKS:
        mapping.link(source, target)
    return mapping


@dataclass(frozen=True)
class Budget:
    """How much training there is; the plain, the grafted and the control target all get the same.

    Attributes:
        train_size: images that the target sees, drawn from the training half.
        source_size: images that the source sees.
        epochs: of the target, over its `train_size` images.
        source_epochs: of the source.
        batch: images a step, of source and target.
        lr: largest learning rate of the target's and the source's SGD.
        threads: that torch may use on the CPU; None for its own choice. With 8x8 images several threads wait for each
            other more than they work, and with one the figures do not depend on the number of cores.
    """

    train_size: int
    source_size: int
    epochs: int
    source_epochs: int
    batch: int = 40
    lr: float = 0.1
    threads: int | None = None

    def check(self, images: Images) -> None:
        """Raise a `GraftError` where `images` cannot give the sizes that are asked for."""
        for size in (self.train_size, self.source_size):
            images.few(size, seed=0)


BUDGETS = {
    "digits": Budget(train_size=200, source_size=1_400, epochs=40, source_epochs=4, threads=1),
    "fashion-mnist": Budget(train_size=2_000, source_size=8_000, epochs=10, source_epochs=2),
    "mnist": Budget(train_size=1_000, source_size=8_000, epochs=15, source_epochs=2),
    "cifar10-npz": Budget(train_size=2_000, source_size=8_000, epochs=12, source_epochs=4),
}
"""Data set -> budget: little data for the target and much for the source, where there is something to give."""
