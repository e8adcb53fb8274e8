"""Distillation losses as pure functions: the baselines that a graft is measured against.

In: student and teacher logits (batch, classes), labels (batch,) int64. Out: a scalar, in nats, to be added to or
weighed against the task's own loss; gradients flow to the student alone. Two of them, `tf_kd` and `uskd`, have no
teacher: they make its answer from the labels and the student. Always true: classes are picked by index,
never by adding large negative numbers, so half precision is safe.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["dkd", "kd", "nkd", "rkd", "tf_kd", "uskd"]


def kd(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Hinton et al. 2015: T^2 KL(teacher || student) of the softened class probabilities, mean over the batch.

    Examples:
        >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
        >>> float(kd(logits, logits + 3.0))         # a shift of all logits is no difference
        0.0
    """
    return _divergence(student / temperature, teacher.detach() / temperature) * temperature**2


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
    others = _divergence(_without(student, labels), _without(teacher, labels))
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


def tf_kd(
    student: Tensor,
    labels: Tensor,
    *,
    confidence: float = 0.99,
    temperature: float = 20.0,
) -> Tensor:
    """Yuan et al. 2020, teacher-free by regularisation: KL(u || student) for a virtual teacher u, mean over the batch.

    The teacher gives the true class `confidence` and shares the rest evenly (eq. 9); u is the softmax of these
    probabilities over the temperature, as in the authors' code, which leaves the student at temperature 1. Their code
    also averages over the classes and makes up for it by a multiplier; here the sum over the classes is taken.

    Args:
        student: (batch, classes) logits, two classes or more.
        labels: (batch,) int64, the true classes.
        confidence: what the virtual teacher gives the true class, above 1 / classes.
        temperature: of the virtual teacher; a high one makes it soft.

    Examples:
        >>> flat, label = torch.zeros(1, 4), torch.tensor([1])
        >>> [round(float(tf_kd(flat, label, temperature=t)), 5) for t in (20.0, 0.5)]
        [0.00023, 0.45707]
    """
    classes = student.shape[1]
    teacher = torch.full_like(student, (1 - confidence) / (classes - 1), requires_grad=False)
    teacher = teacher.scatter(1, labels[:, None], confidence)
    return _divergence(student, teacher / temperature)


def uskd(
    student: Tensor,
    weak: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 0.1,
    mu: float = 0.005,
) -> Tensor:
    """Yang et al. 2023, universal self-knowledge distillation: soft labels from the student itself, with Zipf's law.

    The true class is asked for ``s_t^2 + 1 - mean(s_t^2)`` of its own probability; the others, normalised among
    themselves, for 1 / rank, ranked by ``w_i / (1 - w_t) + s_i / (1 - s_t)``, student and weak probabilities together.
    The ranks are those of the paper; its authors' code ranks by logarithms and counts the true class.

    Args:
        student: (batch, classes) logits, two classes or more.
        weak: (batch, classes) logits of an extra linear layer on a pooled feature from the middle of the student; it
            learns from `mu` times the cross entropy with labels smoothed by 0.1, and through its feature the student.
        labels: (batch,) int64, the true classes.
        alpha: weight of the true class.
        beta: weight of the other classes.
        mu: weight of the weak logits' own loss.
    """
    index = labels[:, None]
    chance = F.softmax(student.detach(), dim=1).gather(1, index)
    asked = chance.square() + 1 - chance.square().mean()
    target = -(asked * F.log_softmax(student, dim=1).gather(1, index)).mean()
    rest = _without(student, labels)
    score = F.softmax(rest.detach(), dim=1) + F.softmax(_without(weak.detach(), labels), dim=1)
    others = -(_zipf(score) * F.log_softmax(rest, dim=1)).sum(1).mean()
    own = F.cross_entropy(weak, labels, label_smoothing=0.1)
    return alpha * target + beta * others + mu * own


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of the softmax of logits, mean over the batch."""
    ours, theirs = (F.log_softmax(logits, dim=1) for logits in (student, teacher))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def _zipf(score: Tensor) -> Tensor:
    """The largest of each row gets 1, the next 1/2, then 1/3, ..., over their sum; equal ones in order."""
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1) + 1
    share = rank.to(score.dtype).reciprocal()
    return share / share.sum(1, keepdim=True)


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
