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


SELF = {
    "tf_kd": lambda s, w, y: distillation.tf_kd(s, y),
    "uskd": distillation.uskd,
}


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


def test_tf_kd_by_hand():
    s, _, y = tensors()
    for confidence, temperature in ((0.99, 20.0), (0.9, 1.0)):
        virtual = [(1 - confidence) / 2] * 3
        virtual[Y] = confidence
        expected = kl(softmax([v / temperature for v in virtual]), softmax(S))
        found = distillation.tf_kd(s, y, confidence=confidence, temperature=temperature)
        assert float(found) == pytest.approx(expected)


@given(sizes, st.sampled_from([0.5, 1.0, 20.0]))
def test_tf_kd_is_cross_entropy_with_soft_labels_less_their_entropy(size, temperature):
    """An independent formula: KL(u || p) = H(u, p) - H(u), by torch's own cross entropy."""
    s, _, y = draw(*size)
    classes = size[1]
    soft = torch.full_like(s, 0.01 / (classes - 1))
    soft[torch.arange(len(y)), y] = 0.99
    soft = (soft / temperature).softmax(1)
    entropy = torch.distributions.Categorical(probs=soft).entropy().mean()
    expected = torch.nn.functional.cross_entropy(s, soft) - entropy
    torch.testing.assert_close(distillation.tf_kd(s, y, temperature=temperature), expected)


def test_tf_kd_of_a_student_like_the_virtual_teacher_is_nothing():
    y = torch.tensor([1, 0])
    virtual = torch.tensor([[0.005, 0.99, 0.005], [0.99, 0.005, 0.005]], dtype=torch.float64)
    assert float(distillation.tf_kd(virtual / 20, y)) == pytest.approx(0, abs=1e-12)


def test_uskd_by_hand():
    """Two samples, three classes: their true classes are 2 and 0."""
    s = torch.tensor([S, [0.2, 0.1, -1.0]], dtype=torch.float64)
    w = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]], dtype=torch.float64)
    y = torch.tensor([2, 0])
    p, q = softmax(S), softmax([0.2, 0.1, -1.0])
    squares = [p[2] ** 2, q[0] ** 2]
    asked = [square + 1 - sum(squares) / 2 for square in squares]
    target = -(asked[0] * math.log(p[2]) + asked[1] * math.log(q[0])) / 2
    # First sample: class 0 has s = .82, w = .12 among the others, class 1 .18 and .88, so class 1 leads. Second sample:
    # class 1 has .75 and .05, class 2 .25 and .95, so class 2 leads.
    first, second = softmax(S[:2]), softmax([0.1, -1.0])
    others = (
        -(
            (math.log(first[1]) + math.log(first[0]) / 2) / 1.5
            + (math.log(second[1]) + math.log(second[0]) / 2) / 1.5
        )
        / 2
    )
    smooth = 0.1 / 3
    a, b = softmax([0.0, 2.0, 0.0]), softmax([1.0, 0.0, 3.0])
    weak = (
        -(
            sum((smooth + 0.9 * (i == 2)) * math.log(a[i]) for i in range(3))
            + sum((smooth + 0.9 * (i == 0)) * math.log(b[i]) for i in range(3))
        )
        / 2
    )
    found = distillation.uskd(s, w, y, alpha=0.7, beta=0.3, mu=0.05)
    assert float(found) == pytest.approx(0.7 * target + 0.3 * others + 0.05 * weak)


@given(sizes)
def test_uskd_agrees_with_a_loop_over_samples(size):
    s, w, y = draw(*size)
    classes = size[1]
    squares = [softmax(row)[c] ** 2 for row, c in zip(s.tolist(), y.tolist(), strict=True)]
    total = 0.0
    for row, weak, c, square in zip(s.tolist(), w.tolist(), y.tolist(), squares, strict=True):
        p, v = softmax(row), softmax(weak)
        total -= (square + 1 - sum(squares) / len(squares)) * math.log(p[c])
        score = {i: p[i] / (1 - p[c]) + v[i] / (1 - v[c]) for i in range(classes) if i != c}
        order = sorted(score, key=score.__getitem__, reverse=True)
        norm = sum(1 / k for k in range(1, classes))
        rest = math.log(sum(math.exp(row[i]) for i in order))
        total -= 0.1 * sum((row[i] - rest) / k for k, i in enumerate(order, 1)) / norm
    found = distillation.uskd(s, w, y, mu=0.0)
    assert float(found) == pytest.approx(total / len(squares))


@pytest.mark.parametrize("name", SELF)
@given(sizes)
def test_self_distillation_has_finite_gradients(name, size):
    student, weak, y = draw(*size)
    student.requires_grad_()
    weak.requires_grad_()
    SELF[name](student, weak, y).backward()
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().sum() > 0
    assert (weak.grad is None) == (name == "tf_kd")
    assert weak.grad is None or torch.isfinite(weak.grad).all()


def test_the_weak_logits_learn_from_their_own_loss_alone():
    student, weak, y = draw(4, 5, 0)
    weak.requires_grad_()
    distillation.uskd(student, weak, y, alpha=3.0, beta=2.0, mu=0.5).backward()
    found, weak.grad = weak.grad.clone(), None
    (0.5 * torch.nn.functional.cross_entropy(weak, y, label_smoothing=0.1)).backward()
    torch.testing.assert_close(found, weak.grad)


@pytest.mark.parametrize("name", SELF)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_self_distillation_is_safe_in_half_precision(name, dtype):
    s = torch.tensor([[30.0, -30.0, 5.0], [1.0, 2.0, 3.0]], dtype=dtype, requires_grad=True)
    w = torch.tensor([[-30.0, 30.0, 5.0], [3.0, 2.0, 1.0]], dtype=dtype)
    loss = SELF[name](s, w, torch.tensor([1, 2]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_stays_finite(name):
    s = torch.tensor([[30.0, -30.0, 5.0], [1.0, 2.0, 3.0]], dtype=torch.bfloat16)
    t = torch.tensor([[-30.0, 30.0, 5.0], [3.0, 2.0, 1.0]], dtype=torch.bfloat16)
    assert torch.isfinite(LOSSES[name](s, t, torch.tensor([0, 2])))


def test_a_shuffled_label_is_seen():
    """Negative control: the label-aware losses look at the label."""
    s, t, y = tensors()
    for loss in (distillation.dkd, distillation.nkd, *SELF.values()):
        assert float(loss(s, t, y)) != pytest.approx(float(loss(s, t, (y + 1) % 3)))
