"""Results that the recorder knows without torch: held against torch's own, on meta tensors and on real ones."""

from __future__ import annotations

import pytest
import torch

from graftlib.graph.shapes import _KNOWN, known_result

aten = torch.ops.aten
ACTIVATIONS = [op for op in _KNOWN if len(op._schema.arguments) == 1] + [
    aten.hardtanh.default,
    aten.hardtanh_.default,
    aten.gelu.default,
    aten.elu.default,
    aten.elu_.default,
    aten.leaky_relu.default,
    aten.leaky_relu_.default,
]


def t(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype)


def statistics(n):
    return [t(n), t(n), t(n), t(n).abs(), False, 0.1, 1e-5, True]


CASES = [
    *((op, (t(2, 3, 4),)) for op in ACTIVATIONS),
    (aten.roll.default, (t(2, 3, 4), [1], [1])),
    (aten.roll.default, (t(2, 3, 4), [1, 2], [0, -1])),
    (aten.add.Tensor, (t(2, 3), t(2, 3))),
    (aten.mul.Tensor, (t(2, 3, dtype=torch.bfloat16), t(2, 3, dtype=torch.bfloat16))),
    (aten.linear.default, (t(5, 3), t(4, 3), t(4))),
    (aten.linear.default, (t(2, 1, 5, 3), t(4, 3))),
    (aten.add_.Tensor, (t(2, 3), t(2, 3))),
    (aten.add_.Tensor, (t(2, 3), t(3))),
    (aten.add.Tensor, (t(2, 3), t(3))),
    (aten.mul.Tensor, (t(3), t(2, 1, 3))),
    (aten.mul.Tensor, (t(2, 1, 3), t(4, 1))),
    (aten.mul.Tensor, (t(2, 3), 2.0)),
    (aten.sub.Tensor, (t(2, 3, dtype=torch.bfloat16), 1)),
    (aten.div.Tensor, (t(2, 3), t())),
    (aten.pow.Tensor_Scalar, (t(2, 3), 2)),
    (aten.relu.default, (t(2, 3).t(),)),
    (aten.neg.default, (t(1, 5, 4, 6).transpose(1, 2)[..., 3:],)),
    (aten.neg.default, (t(2, 5, 4, 6).transpose(1, 2)[..., 3:],)),
    (aten.mul.Tensor, (t(2, 3), t(3, 2).t())),
    (aten.mul.Tensor, (t(3, 2).t(), t(2, 3))),
    (aten.mul.Tensor, (t(1, 5, 4, 6).transpose(1, 2), t(1, 1, 5, 6))),
    (aten.mul.Tensor, (t(1, 1, 5, 6), t(2, 5, 4, 6).transpose(1, 2))),
    (aten.add.Tensor, (t(2, 4, 5, 6).to(memory_format=torch.channels_last), t(2, 4, 5, 6))),
    (aten.add.Tensor, (t(4, 1, 1), t(2, 4, 5, 6).to(memory_format=torch.channels_last))),
    (aten.mean.dim, (t(2, 3, 4), [-1], True)),
    (aten.mean.dim, (t(2, 3, 4), [0, 2])),
    (aten.mean.dim, (t(3, 2, 4).transpose(0, 1), [1])),
    (aten.adaptive_avg_pool2d.default, (t(2, 3, 5, 4), [1, 1])),
    (aten.adaptive_avg_pool2d.default, (t(3, 5, 4), [2, 7])),
    (aten.adaptive_avg_pool2d.default, (t(1, 4, 1, 1), [2, 1])),
    (aten.adaptive_avg_pool2d.default, (t(2, 1, 5, 4), [1, 2])),
    (aten.adaptive_avg_pool2d.default, (t(2, 1, 1, 1), [1, 1])),
    (aten.adaptive_avg_pool2d.default, (t(0, 2, 3, 3), [1, 1])),
    (aten.cat.default, ([t(2, 3), t(2, 1)], -1)),
    (aten.cat.default, ([t(1, 5, 4, 6).transpose(1, 2)[..., 3:], t(1, 4, 5, 3)], -1)),
    (aten.scaled_dot_product_attention.default, (t(2, 5, 4), t(2, 6, 4), t(2, 6, 3))),
    (aten.conv2d.default, (t(2, 4, 9, 8), t(6, 4, 3, 3), t(6), [2, 2], [1, 0])),
    (aten.conv2d.default, (t(1, 4, 9, 8), t(4, 1, 3, 2), None, [1, 1], [2, 1], [2, 1], 4)),
    (aten.conv2d.default, (t(1, 4, 1, 1), t(6, 4, 1, 1))),
    (aten.conv2d.default, (t(2, 1, 5, 5), t(6, 1, 1, 1), t(6))),
    (aten.batch_norm.default, (t(2, 3, 4, 4), *statistics(3))),
    (aten.batch_norm.default, (t(2, 3), None, None, t(3), t(3).abs(), False, 0.1, 1e-5, True)),
    (aten.layer_norm.default, (t(2, 5, 3), [3], t(3), t(3))),
    (aten.layer_norm.default, (t(2, 5, 3), [5, 3])),
]
# What torch has to be asked: its answer is of another shape, dtype or stride than one would think, or an error.
ASKED = [
    (aten.relu.default, (t(2, 3).long(),)),
    (aten.add.Tensor, (t(2, 3), t(2, 3).long())),
    (aten.add.Tensor, (t(2, 3), t(4))),
    (aten.add.Tensor, (t(2, 3), 1j)),
    (aten.add.Tensor, (t(2, 3), t(2, 3, dtype=torch.float64))),
    (aten.adaptive_avg_pool2d.default, (t(2, 0, 3, 3), [1, 1])),
    (aten.adaptive_avg_pool2d.default, (t(2, 3), [1, 1])),
    (aten.adaptive_avg_pool2d.default, (t(2, 3, 5, 4).transpose(1, 3), [1, 1])),
    (aten.mean.dim, (t(2, 3), [2])),
    (aten.mean.dim, (t(2, 3), [])),
    (aten.mean.dim, (t(2, 3), [1, -1])),
    (aten.cat.default, ([t(2, 3), t(3, 3)], 1)),
    (aten.cat.default, ([t(2, 3), t(2, 3, dtype=torch.float64)],)),
    (aten.cat.default, ([t(2, 4, 5, 6).to(memory_format=torch.channels_last)] * 2,)),
    (aten.scaled_dot_product_attention.default, (t(2, 5, 4), t(2, 6, 3), t(2, 6, 3))),
    (aten.scaled_dot_product_attention.default, (t(2, 5, 4), t(2, 6, 4), t(2, 5, 4))),
    (aten.scaled_dot_product_attention.default, (t(2, 5, 4), t(3, 6, 4), t(3, 6, 4))),
    (
        aten.scaled_dot_product_attention.default,
        (t(2, 5, 4), t(2, 6, 4), t(2, 6, 4), t(5, 5)),
    ),
    (aten.roll.default, (t(2, 3, 4), [1])),
    (aten.roll.default, (t(2, 3, 4), [1], [3])),
    (aten.linear.default, (t(3), t(4, 3))),
    (aten.linear.default, (t(5, 2), t(4, 3))),
    (aten.linear.default, (t(5, 3), t(4, 3), t(3))),
    (aten.linear.default, (t(3, 5).t(), t(4, 3))),
    (aten.add_.Tensor, (t(3), t(2, 3))),
    (aten.conv2d.default, (t(4, 9, 8), t(6, 4, 3, 3))),
    (aten.conv2d.default, (t(2, 4, 9, 8), t(6, 3, 3, 3))),
    (aten.conv2d.default, (t(2, 4, 2, 8), t(6, 4, 3, 3))),
    (aten.conv2d.default, (t(2, 4, 9, 8), t(6, 4, 3, 3).to(memory_format=torch.channels_last))),
    (aten.conv2d.default, (t(2, 4, 9, 8).to(memory_format=torch.channels_last), t(6, 4, 3, 3))),
    (aten.batch_norm.default, (t(2, 3), None, None, None, None, True, 0.1, 1e-5, True)),
    (aten.batch_norm.default, (t(2, 3, 4), *statistics(4))),
    (aten.layer_norm.default, (t(2, 3), [2])),
    (aten.layer_norm.default, (t(2, 3, dtype=torch.bfloat16), [3], t(3))),
    (aten.abs.default, (t(2, 3),)),
]


def meta(value):
    if isinstance(value, list):
        return [meta(each) for each in value]
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def name(case):
    return f"{case[0]}{[tuple(a.shape) for a in case[1] if isinstance(a, torch.Tensor)]}"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_a_known_result_is_torchs(case):
    func, args = case
    known = known_result(func, [meta(a) for a in args], {})
    asked = [func(*map(meta, args)), func(*(a.clone() if hasattr(a, "clone") else a for a in args))]
    for answer in asked:
        assert known.shape == answer.shape
        assert known.dtype == answer.dtype
        assert known.stride() == answer.stride()
    assert known.device.type == "meta"


@pytest.mark.parametrize("case", ASKED, ids=name)
def test_what_is_not_plain_is_asked(case):
    func, args = case
    assert known_result(func, [meta(a) for a in args], {}) is None


@pytest.mark.parametrize("mask", [None, t(1, 1, 1, 6), t(2, 4, 5, 6) > 0])
def test_grouped_attention_is_as_on_meta_tensors(mask):
    """Fused kernels on real tensors give other strides, each its own."""
    q, k, v = meta([t(2, 5, 4, 8).transpose(1, 2), t(2, 2, 6, 8), t(2, 2, 6, 3)])
    op = aten.scaled_dot_product_attention.default
    args, more = [q, k, v, meta(mask)], {"enable_gqa": True}
    known, asked = known_result(op, args, more), op(*args, **more)
    assert (known.shape, known.stride()) == (asked.shape, asked.stride())
    assert known_result(op, args, {}) is None


def test_real_tensors_are_never_answered():
    assert all(known_result(func, args, {}) is None for func, args in CASES)


def test_every_known_op_is_a_case():
    assert {func for func, _ in CASES} == set(_KNOWN)


def test_in_place_gives_the_tensor_itself():
    x = t(2, 3).to("meta")
    assert known_result(aten.relu_.default, [x], {}) is x
    assert known_result(aten.relu.default, [x], {}) is not x
