"""Distillation losses as pure functions: the rivals that a graft is measured against.

In: student and teacher logits (batch, classes), labels (batch,) int64. Out: a scalar, in nats, to be added to or
weighed against the task's own loss; gradients flow to the student alone. Always true: classes are picked by index,
never by adding large negative numbers, so half precision is safe.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["dkd", "kd", "nkd", "rkd"]


def kd(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Hinton et al. 2015: T^2 KL(teacher || student) of the softened class probabilities, mean over the batch.

    >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
    >>> float(kd(logits, logits + 3.0))         # a shift of all logits is no difference
    0.0
    """
    teacher = teacher.detach()
    soft = F.log_softmax(teacher / temperature, dim=1)
    divergence = F.kl_div(
        F.log_softmax(student / temperature, dim=1), soft, reduction="batchmean", log_target=True
    )
    return divergence * temperature**2


def rkd(student: Tensor, teacher: Tensor, *, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """Park et al. 2019: relations between samples, their pairwise distances and the angles of their triples.

    Args:
        student: (batch, d) embeddings or logits.
        teacher: (batch, e) of the same batch; e may differ from d.
        distance: weight of the distance term (the paper's 25).
        angle: weight of the angle term (the paper's 50).
    """
    teacher = teacher.detach()
    by_distance = F.smooth_l1_loss(_distances(student), _distances(teacher))
    by_angle = F.smooth_l1_loss(_angles(student), _angles(teacher))
    return distance * by_distance + angle * by_angle


def dkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Zhao et al. 2022: distillation taken apart into the true class against the rest, and the rest among itself.

    Args:
        student: (batch, classes) logits.
        teacher: the same of the teacher.
        labels: (batch,) int64, the true classes.
        alpha: weight of the target-class part (eq. 7, TCKD).
        beta: weight of the part among the other classes (NCKD).
        temperature: of both.
    """
    student, teacher = student / temperature, teacher.detach() / temperature
    target = _binary_divergence(student, teacher, labels)
    others = F.kl_div(
        F.log_softmax(_without(student, labels), dim=1),
        F.log_softmax(_without(teacher, labels), dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return (alpha * target + beta * others) * temperature**2


def nkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    gamma: float = 1.5,
    temperature: float = 1.0,
) -> Tensor:
    """Yang et al. 2023: the true class weighed by the teacher's belief, the others normalised among themselves."""
    teacher = teacher.detach()
    index = labels[:, None]
    belief = F.softmax(teacher, dim=1).gather(1, index)
    target = -(belief * F.log_softmax(student, dim=1).gather(1, index)).mean()
    soft = F.softmax(_without(teacher, labels) / temperature, dim=1)
    others = -(soft * F.log_softmax(_without(student, labels) / temperature, dim=1)).sum(1).mean()
    return target + gamma * temperature**2 * others


def _without(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits of all classes but the true one, (batch, classes - 1), in order."""
    classes = logits.shape[1]
    position = torch.arange(classes - 1, device=logits.device)
    return logits.gather(1, position + (position >= labels[:, None]))


def _binary_divergence(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """KL over two outcomes, the true class and all others, mean over the batch."""

    def log_pair(logits: Tensor) -> Tensor:
        total = logits.logsumexp(1, keepdim=True)
        rest = _without(logits, labels).logsumexp(1, keepdim=True)
        return torch.cat([logits.gather(1, labels[:, None]) - total, rest - total], dim=1)

    return F.kl_div(log_pair(student), log_pair(teacher), reduction="batchmean", log_target=True)


def _distances(x: Tensor) -> Tensor:
    """Pairwise Euclidean distances over their own mean, (batch, batch), the diagonal zero."""
    square = (x[:, None] - x[None]).square().sum(-1)
    # The root's slope at zero is infinite; coinciding samples have distance zero and no gradient.
    apart = square > 0
    distance = torch.where(apart, square.where(apart, torch.ones_like(square)).sqrt(), 0.0)
    mean = distance.sum() / apart.sum().clamp_min(1)
    return distance / mean.clamp_min(torch.finfo(x.dtype).tiny)


def _angles(x: Tensor) -> Tensor:
    """Cosines of the angle at the middle one of every three samples, (batch, batch, batch)."""
    direction = F.normalize(x[None] - x[:, None], dim=2)
    return direction @ direction.transpose(1, 2)
