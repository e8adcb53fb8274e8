"""The paper's eq. 2."""

import torch

from graftlib.graft import Link, LinkedMatrix
from graftlib_adapters import MLPAdapter

MATRICES = [LinkedMatrix("w", (3, 4), None, True), LinkedMatrix("v", (5, 6), None, False)]


def test_the_papers_form_is_equation_2():
    """W_new = f2(f1(V)^T), f1: 6 -> 3 on V's five rows, f2: 5 -> 4 on the three rows that come out."""
    module = MLPAdapter(width=7, init="paper").build(MATRICES, [Link(1, 0, "l")])
    w, v = torch.randn(3, 4), torch.randn(5, 6)
    one, two = module.generators[0].rows, module.generators[0].columns
    assert [one[0].in_features, one[2].out_features] == [6, 3]
    assert [two[0].in_features, two[2].out_features] == [5, 4]
    torch.testing.assert_close(module([w, v])[0], two(one(v).T))


def test_it_forgets_the_target_and_the_identity_form_does_not():
    v = torch.randn(5, 6)
    for init, forgets in (("paper", True), ("identity", False)):
        module = MLPAdapter(init=init).build(MATRICES, [Link(1, 0, "l")])
        news = [module([w, v])[0] for w in (torch.ones(3, 4), torch.arange(12.0).view(3, 4))]
        assert torch.allclose(*news, atol=1e-5) is forgets
