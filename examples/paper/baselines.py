"""The losses that a graft is measured against: distillation from a trained teacher, and from no teacher at all.

In: a task of classification, a student, and for the first kind a frozen teacher. Out: the loss of a batch, with the
task's own in it. Always true: the teacher sees what the student sees. Where the training examples look the same every
time, the teacher is asked once for all of them; that time is counted. The losses themselves are
`graftlib_adapters.distillation`'s.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graftlib_adapters import distillation

from .experiment import Distil, Task

__all__ = ["LOSSES", "Baseline"]

LOSSES = ("kd", "rkd", "dkd", "nkd", "tf_kd", "uskd")
TF_KD = 0.1
"""The share of Tf-KD's virtual teacher beside the labels."""


class Baseline:
    """One distillation loss for one student.

    Args:
        distil: which. USKD's options name ``feature``, the module in the middle of the student whose pooled output its
            weak classifier reads.
        task: of the student.
        student: the model in training.
        optimizer: of the student; the weak classifier learns at its rate.
        teacher: frozen, in eval mode; None where the loss needs none.
    """

    def __init__(
        self,
        distil: Distil,
        task: Task,
        student: nn.Module,
        optimizer: torch.optim.Optimizer,
        teacher: nn.Module | None,
    ) -> None:
        self.name, self.teacher = distil.loss, teacher
        self.known = None
        if teacher is not None and not task.augments:
            self.known = _all_logits(teacher, task)
        self.weak = None
        if distil.loss == "uskd":
            self.weak = _Weak(student, distil.options["feature"], task, optimizer)

    def loss(self, task: Task, student: nn.Module, index: Tensor, progress: float) -> Tensor:
        """The loss of the training examples `index`; `progress` is the share of training that is done."""
        inputs, labels = task.inputs(index), task.labels(index)
        logits = student(*inputs)
        own = task.loss(logits, labels)
        if self.name == "tf_kd":
            return (1 - TF_KD) * own + TF_KD * distillation.tf_kd(logits, labels)
        if self.weak is not None:
            return own + distillation.uskd(logits, self.weak.logits(), labels)
        return _taught(self.name, own, logits, self._teacher(inputs, index), labels, progress)

    def stepped(self) -> None:
        """To be called after the student's optimizer has stepped."""
        if self.weak is not None:
            self.weak.step()

    def _teacher(self, inputs: tuple[Tensor, ...], index: Tensor) -> Tensor:
        if self.known is not None:
            return self.known[index]
        assert self.teacher is not None
        with torch.no_grad():
            logits: Tensor = self.teacher(*inputs)
        return logits


class _Weak:
    """A linear classifier on a pooled feature from the middle of the student; gone when the training ends."""

    def __init__(
        self, student: nn.Module, feature: str, task: Task, optimizer: torch.optim.Optimizer
    ) -> None:
        self.pooled: Tensor | None = None
        student.get_submodule(feature).register_forward_hook(self._listen)
        with torch.no_grad():
            student.eval()
            classes = student(*task.example()).shape[1]
            student.train()
        assert self.pooled is not None
        self.head = nn.Linear(self.pooled.shape[1], classes).to(self.pooled.device)
        self.optimizer, self.own = optimizer, torch.optim.SGD(self.head.parameters(), 0.0, 0.9)

    def _listen(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.pooled = output.mean((2, 3))

    def logits(self) -> Tensor:
        """Of the batch that the student saw last."""
        said: Tensor = self.head(self.pooled)
        return said

    def step(self) -> None:
        """One step at the rate of the student's optimizer."""
        self.own.param_groups[0]["lr"] = self.optimizer.param_groups[0]["lr"]
        self.own.step()
        self.own.zero_grad()


def _all_logits(teacher: nn.Module, task: Task) -> Tensor:
    """(n, classes): what the teacher says of every training example."""
    device = task.labels(torch.zeros(1, dtype=torch.int64)).device
    with torch.no_grad():
        parts = torch.arange(task.size, device=device).split(500)
        return torch.cat([teacher(*task.inputs(part)) for part in parts])


def _taught(
    name: str, own: Tensor, logits: Tensor, teacher: Tensor, labels: Tensor, progress: float
) -> Tensor:
    """The loss `name` with the task's own, as their authors weigh them."""
    if name == "kd":
        return 0.5 * own + 0.5 * distillation.kd(logits, teacher, temperature=4.0)
    if name == "rkd":
        return own + distillation.rkd(logits, teacher)
    if name == "dkd":
        # The authors warm up over 20 of 240 epochs: the same share of a shorter training.
        warm = min(1.0, 12 * progress)
        return own + warm * distillation.dkd(logits, teacher, labels)
    return own + distillation.nkd(logits, teacher, labels, gamma=3.5, temperature=3.0)
