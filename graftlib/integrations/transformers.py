"""A graft in Hugging Face's `Trainer`.

In: an attached graft. Out: a callback for ``Trainer(callbacks=[...])``. Always true: the weights are those of the plain
loop, to the bit; evaluations and checkpoints hold settled weights; every checkpoint folder holds ``graft.safetensors``,
and ``trainer.train(resume_from_checkpoint=True)`` goes on from it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import MissingExtraError
from ..graft import Graft, files
from ..graft.followed import check_optimizers
from .callback_state import Steps, unwrapped

try:
    from transformers import (
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )
except ImportError as error:
    raise MissingExtraError(
        "Hugging Face's Trainer needs transformers and accelerate.",
        fix='pip install "graftlib[hf]"',
    ) from error

__all__ = ["GraftCallback"]


class GraftCallback(TrainerCallback):
    """Performs a graft's transfers inside ``trainer.train()``, saves it with the checkpoints, takes it off at the end.

    Args:
        graft: attached, following no optimizer: the callback reports every step to it.
        resume: the checkpoint folder that the run resumes from, where it is not
            ``{args.output_dir}/checkpoint-{step}``: no callback is given its name.

    Example::

        graft = attach(MergeNet(), mapping, cycle=4)
        Trainer(model, args, train_dataset=data, callbacks=[GraftCallback(graft)]).train()
        graft.report("graft.html")
    """

    def __init__(self, graft: Graft, *, resume: str | os.PathLike[str] | None = None) -> None:
        self.graft = graft
        self.resume = resume
        self._steps = Steps(graft)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the optimizer; go on from the checkpoint that the trainer has loaded, if it has.

        Raises:
            AttachError: the trainer's optimizer does not step what the graft writes.
            CheckpointError: the checkpoint has no state of the graft, or that of other weights.
        """
        optimizer = kwargs.get("optimizer")
        if optimizer is not None:
            check_optimizers([unwrapped(optimizer)], self.graft.plan)
        if state.global_step:
            folder = Path(self.resume) if self.resume else _checkpoint(args, state)
            files.take_up(self.graft, files.load(folder / files.NAME), where=str(folder))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The first forward pass of an optimizer step is next."""
        self._steps.begin()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The optimizer has stepped; logging, evaluating and saving are next."""
        self._steps.end()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The trainer has written a checkpoint folder: put the graft's state into it."""
        bound = files.bound(self.graft)
        if args.should_save:
            files.save(bound, _checkpoint(args, state) / files.NAME)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the graft off."""
        self._steps.finish()


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """Where the trainer keeps the checkpoint of this step."""
    return Path(str(args.output_dir), f"checkpoint-{state.global_step}")
