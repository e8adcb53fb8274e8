"""A graft in a loop with an `Accelerator`.

In: an attached graft, an accelerator, optimizers as `prepare` gave them back. Out: the graft, following them. Always
true: the weights are those of the plain loop, to the bit; ``accelerator.save_state`` writes settled weights and
``graft.safetensors``, and ``accelerator.load_state`` goes on from them. Evaluate inside ``with graft.settled():``, and
save in there too where the accelerator shards the models (FSDP, DeepSpeed): it writes those before it calls a hook.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..errors import CheckpointError, MissingExtraError
from ..graft import Graft, files
from .callback_state import unwrapped

try:
    from accelerate import Accelerator
except ImportError as error:
    raise MissingExtraError(
        "this helper needs accelerate.", fix='pip install "graftlib[hf]"'
    ) from error

__all__ = ["follow"]


def follow(graft: Graft, accelerator: Accelerator, *optimizers: Optimizer) -> Graft:
    """Let a graft follow prepared optimizers, and be saved and loaded with the accelerator's state.

    Args:
        graft: attached; call this after ``accelerator.prepare``.
        accelerator: its ``save_state`` and ``load_state`` carry the graft until it is detached.
        optimizers: those that step the written parameters, as ``prepare`` gave them back.

    Returns:
        The graft itself; the loop does not change. ``graft.detach()`` at the end.

    Raises:
        AttachError: see `Graft.follow`.

    Example::

        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        follow(attach(MergeNet(), mapping, cycle=4), accelerator, optimizer)
    """
    graft.follow(*(unwrapped(optimizer) for optimizer in optimizers))
    checkpointed = _Checkpointed(graft, accelerator)
    accelerator.register_save_state_pre_hook(checkpointed.save)
    accelerator.register_load_state_pre_hook(checkpointed.load)
    accelerator.register_for_checkpointing(checkpointed)
    return graft


class _Checkpointed:
    """Saves the graft beside the accelerator's files, and loads it once those are loaded.

    Accelerate calls the hooks before it saves and loads, and `load_state_dict` of what is registered after everything
    else. It keeps registered states by pickle, so all that is handed to it is the name of the graft's own file.
    """

    def __init__(self, graft: Graft, accelerator: Accelerator) -> None:
        self.graft, self.accelerator = graft, accelerator
        self.folder: Path | None = None

    def save(self, models: list[nn.Module], weights: list[Any], folder: str) -> None:
        """Before ``save_state`` writes: the weights to write become the settled ones."""
        if not self.graft.attached:
            return
        if not weights and files.pending(self.graft):
            raise CheckpointError(
                "the accelerator has saved a transfer that was not trained on yet.",
                why="with sharded models it writes the weights before any hook is called",
                fix="with graft.settled(): accelerator.save_state(folder)",
            )
        with self.graft.settled():
            for state in weights:
                _copy_written(state, self.graft)
            state = files.bound(self.graft)
        if self.accelerator.is_main_process:
            files.save(state, Path(folder, files.NAME))

    def load(self, models: list[nn.Module], folder: str) -> None:
        """Before ``load_state`` reads: remember from where."""
        self.folder = Path(folder)

    def state_dict(self) -> dict[str, str]:
        """The name of the file that holds the graft."""
        return {"file": files.NAME}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Everything else is loaded: go on."""
        folder, self.folder = self.folder, None
        if folder is not None and self.graft.attached:
            files.take_up(self.graft, files.load(folder / files.NAME), where=str(folder))


def _copy_written(state: Any, graft: Graft) -> None:
    """Replace, in a state_dict that shares the model's memory, the tensors that the graft writes by copies."""
    mine = {tensor.local().data_ptr() for tensor in graft.plan.written}
    for name, value in list(state.items()):
        if isinstance(value, torch.Tensor) and value.numel() and value.data_ptr() in mine:
            state[name] = value.clone()
