"""The pilot of mimetic initialisation: what its starts are."""

import pytest
import torch

pytest.importorskip("torchvision", reason="torchvision is not installed")

from examples.paper import mimetic

MATRICES = ("query", "key", "value", "out")


def begun(start):
    return mimetic.begun(start, 0, 1, 16)


def shares(model):
    """Mean share of the identity in the products of query and key, and of value and output."""
    size = mimetic.WIDTH // mimetic.HEADS
    found = []
    for layer in model.layers:
        q, k, v, out = (getattr(layer, name).weight.detach() for name in MATRICES)
        for rows in torch.arange(mimetic.WIDTH).split(size):
            products = q[rows].T @ k[rows], out[:, rows] @ v[rows]
            found.append([mimetic.identity(product, size) for product in products])
    return torch.tensor(found).mean(0)


def test_the_identity_is_where_the_paper_has_it():
    qk, vo = shares(begun("mimetic"))
    assert qk > 0.3
    assert vo < -0.3
    turned = shares(begun("sign turned"))
    assert turned[0] < -0.3 < 0.3 < turned[1]


@pytest.mark.parametrize("start", ["plain", "equal norms"])
def test_a_control_has_no_identity(start):
    assert shares(begun(start)).abs().max() < 0.1


def test_noise_has_the_norms_of_what_it_stands_for():
    one, other = begun("mimetic"), begun("equal norms")
    for a, b in zip(one.layers, other.layers, strict=True):
        for name in MATRICES:
            norms = [getattr(layer, name).weight.norm() for layer in (a, b)]
            torch.testing.assert_close(*norms)


@pytest.mark.parametrize("start", mimetic.STARTS)
def test_what_is_no_attention_is_the_same_in_every_start(start):
    one, other = begun("plain").state_dict(), begun(start).state_dict()
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert all(name.split(".")[-2] in MATRICES for name in changed)
    assert bool(changed) == (start != "plain")
