"""A graft in Lightning's `Trainer`.

In: an attached graft. Out: a callback for ``Trainer(callbacks=[...])``. Always true: the weights are those of the plain
loop, to the bit, with automatic and with manual optimisation; validation and checkpoints see settled weights; every
checkpoint carries the graft, as plain data and tensors.
"""

from __future__ import annotations

from typing import Any

from ..errors import MissingExtraError
from ..graft import Graft, files
from ..graft.followed import check_optimizers
from ..graft.linked import owns
from .callback_state import Steps

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise MissingExtraError(
        "this callback needs Lightning.", fix='pip install "graftlib[lightning]"'
    ) from error

__all__ = ["GraftCallback"]


class GraftCallback(Callback):
    """Performs a graft's transfers inside ``trainer.fit()``, saves it with the checkpoints, takes it off at the end.

    Args:
        graft: attached, following no optimizer: the callback reports every step to it.

    Example::

        graft = attach(MergeNet(), mapping, cycle=4)
        Trainer(callbacks=[GraftCallback(graft)]).fit(module, loader)
        graft.report("graft.html")
    """

    def __init__(self, graft: Graft) -> None:
        self.graft = graft
        self._steps = Steps(graft, closure=True)
        self._loaded: dict[str, Any] | None = None
        self._last: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the optimizers; go on from the checkpoint that the trainer has loaded, if it has.

        Raises:
            AttachError: the module's optimizers do not step what the graft writes.
            CheckpointError: the checkpoint has no state of the graft, or that of other weights.
        """
        written = self.graft.plan.written
        owning = [o for o in trainer.optimizers if any(owns(o, tensor) for tensor in written)]
        check_optimizers(owning or trainer.optimizers, self.graft.plan)
        loaded, self._loaded = self._loaded, None
        if loaded is not None or trainer.ckpt_path is not None:
            files.take_up(self.graft, loaded or {}, where=str(trainer.ckpt_path))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A step, or with gradient accumulation a part of one, is next."""
        self._steps.begin()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """It is over; validating and saving are next."""
        self._steps.end()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave settled weights and no hook behind; `fit` may be called again."""
        if self.graft.attached:
            self._steps.end()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the graft off."""
        self._last = self.state_dict()
        self._steps.finish()

    def state_dict(self) -> dict[str, Any]:
        """What Lightning puts into its checkpoints."""
        return files.bound(self.graft) if self.graft.attached else self._last

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what Lightning found in a checkpoint until the optimizers are loaded too."""
        self._loaded = state_dict
