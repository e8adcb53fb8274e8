"""Distillation losses against values worked out by hand from their formulas."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftlib_adapters import distillation

LOSSES = {
    "kd": lambda s, t, y: distillation.kd(s, t),
    "rkd": lambda s, t, y: distillation.rkd(s, t),
    "dkd": distillation.dkd,
    "nkd": distillation.nkd,
}

sizes = st.tuples(st.integers(2, 6), st.integers(3, 7), st.integers(0, 10_000))


def draw(batch, classes, seed):
    g = torch.Generator().manual_seed(seed)
    student = torch.randn(batch, classes, generator=g, dtype=torch.float64)
    teacher = torch.randn(batch, classes, generator=g, dtype=torch.float64)
    return student, teacher, torch.randint(0, classes, (batch,), generator=g)


@pytest.mark.parametrize("name", ["kd", "rkd", "dkd"])
@given(sizes)
def test_a_student_equal_to_its_teacher_pays_nothing(name, size):
    student, _, y = draw(*size)
    assert float(LOSSES[name](student, student, y)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@given(sizes)
def test_a_student_unlike_its_teacher_pays(name, size):
    student, teacher, y = draw(*size)
    if name == "rkd" and size[0] == 2:
        return  # two samples have one distance, which its own mean makes 1 for everybody
    assert float(LOSSES[name](student, teacher, y)) > 0


@pytest.mark.parametrize("name", LOSSES)
@given(sizes)
def test_the_teacher_gets_no_gradient_and_the_student_a_finite_one(name, size):
    student, teacher, y = draw(*size)
    student.requires_grad_()
    teacher.requires_grad_()
    LOSSES[name](student, teacher, y).backward()
    assert teacher.grad is None
    assert torch.isfinite(student.grad).all()


def softmax(row):
    top = [math.exp(v) for v in row]
    return [v / sum(top) for v in top]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


S, T, Y = [1.0, -0.5, 2.0], [0.3, 1.2, -0.7], 2


def tensors():
    return (
        torch.tensor([S], dtype=torch.float64),
        torch.tensor([T], dtype=torch.float64),
        torch.tensor([Y]),
    )


def test_kd_by_hand():
    s, t, _ = tensors()
    expected = 16 * kl(softmax([v / 4 for v in T]), softmax([v / 4 for v in S]))
    assert float(distillation.kd(s, t)) == pytest.approx(expected)


def test_dkd_by_hand():
    s, t, y = tensors()
    p, q = softmax([v / 4 for v in T]), softmax([v / 4 for v in S])
    target = kl([p[Y], 1 - p[Y]], [q[Y], 1 - q[Y]])
    others = kl(softmax([v / 4 for v in T[:2]]), softmax([v / 4 for v in S[:2]]))
    expected = 16 * (1.0 * target + 8.0 * others)
    assert float(distillation.dkd(s, t, y)) == pytest.approx(expected)


def test_dkd_with_its_two_parts_weighed_as_in_the_identity_is_kd():
    """Eq. 6 of its paper: KD = TCKD + (1 - p_t) NCKD, for one sample."""
    s, t, y = tensors()
    rest = 1 - softmax([v / 4 for v in T])[Y]
    both = distillation.dkd(s, t, y, alpha=1.0, beta=rest)
    torch.testing.assert_close(both, distillation.kd(s, t))


def test_nkd_by_hand():
    s, t, y = tensors()
    target = -softmax(T)[Y] * math.log(softmax(S)[Y])
    p, q = softmax([v / 3 for v in T[:2]]), softmax([v / 3 for v in S[:2]])
    others = -sum(a * math.log(b) for a, b in zip(p, q, strict=True))
    expected = target + 3.5 * 9 * others
    assert float(distillation.nkd(s, t, y, gamma=3.5, temperature=3.0)) == pytest.approx(expected)


def test_rkd_by_hand():
    """Three points: a 3-4-5 triangle for the student, one with equal sides for the teacher."""
    s = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    t = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]], dtype=torch.float64)
    distances = [(3 / 4 - 1), 0.0, (5 / 4 - 1)]
    by_distance = 2 * sum(d * d / 2 for d in distances) / 9
    cosines = [0 - 0.5, 3 / 5 - 0.5, 4 / 5 - 0.5]
    by_angle = 2 * sum(c * c / 2 for c in cosines) / 27
    expected = 25 * by_distance + 50 * by_angle
    assert float(distillation.rkd(s, t)) == pytest.approx(expected)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_stays_finite(name):
    s = torch.tensor([[30.0, -30.0, 5.0], [1.0, 2.0, 3.0]], dtype=torch.bfloat16)
    t = torch.tensor([[-30.0, 30.0, 5.0], [3.0, 2.0, 1.0]], dtype=torch.bfloat16)
    assert torch.isfinite(LOSSES[name](s, t, torch.tensor([0, 2])))


def test_a_shuffled_label_is_seen():
    """Negative control: the label-aware losses look at the label."""
    s, t, y = tensors()
    for loss in (distillation.dkd, distillation.nkd):
        assert float(loss(s, t, y)) != pytest.approx(float(loss(s, t, (y + 1) % 3)))
