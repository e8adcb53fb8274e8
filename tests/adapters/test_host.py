"""What is written follows the host, row norms stay, learned factors learn."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftlib.graft import Link, LinkedMatrix
from graftlib_adapters import MergeNet
from graftlib_adapters._matrices import kept_row_norms
from graftlib_adapters.mergenet.transfer import limited

sizes = st.integers(1, 9)


def built(*shapes, dtype=torch.float32, **options):
    """The module of one link, from the second matrix to the first, its zero-initialised layers moved off zero."""
    adapter = MergeNet(**{"heads": 2, "rank": 3, "width": 8, **options})
    matrices = [
        LinkedMatrix(str(i), shape, adapter.rank(torch.randn(shape), min(shape)), i == 0, dtype)
        for i, shape in enumerate(shapes)
    ]
    module = adapter.build(matrices, [Link(1, 0, "l")])
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    return module


@given(sizes, sizes, st.floats(1e-3, 1.0))
def test_a_write_is_less_than_a_share_of_how_far_the_host_moved(rows, columns, step):
    module = built((rows, columns), (5, 7), host_share=0.1, norm="keep")
    w, v = torch.randn(rows, columns), torch.randn(5, 7)
    (w,) = module([w, v])
    moved = step * torch.randn(rows, columns)
    stepped = w.detach() + moved
    (new,) = module([stepped, v])
    assert (new - stepped).norm() < 0.1 * moved.norm() * (1 + 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("write", ["replace", "probe"])
def test_a_host_that_does_not_move_is_not_written(write, dtype):
    """To the bit, and from the first transfer on; also where the parameter rounds what is written."""
    module = built((6, 9), (5, 7), write=write, dtype=dtype)
    w, v = torch.randn(6, 9).to(dtype).float(), torch.randn(5, 7)
    for _ in range(3):
        (new,) = module([w, v])
        assert torch.equal(new, w)
    stepped = w + 0.5
    (new,) = module([stepped, v])
    assert not torch.equal(new, stepped)
    left = (new if write == "replace" else stepped).detach().to(dtype).float()
    assert torch.equal(module([left, v])[0], left)


def test_a_constant_bound_writes_all_the_same():
    """The negative control."""
    module = built((6, 9), (5, 7), trust=0.005)
    w, v = torch.randn(6, 9), torch.randn(5, 7)
    assert not torch.equal(module([w, v])[0], w)


def test_writes_shrink_with_the_steps_of_the_host():
    module = built((6, 9), (5, 7), host_share=0.1)
    w, v = torch.randn(6, 9), torch.randn(5, 7)
    sizes = []
    for rate in (0.1, 0.01, 0.001):
        stepped = module([w, v])[0].detach() + rate * torch.randn(6, 9)
        (new,) = module([stepped, v])
        sizes.append((new - stepped).norm().item())
        w = new.detach()
    assert sizes[0] > 5 * sizes[1] > 25 * sizes[2] > 0


def test_a_fresh_adapter_learns_from_its_first_transfer_though_the_host_has_not_moved():
    adapter = MergeNet(heads=2, rank=3, width=8)
    matrices = [LinkedMatrix("w", (6, 9), 3, True), LinkedMatrix("v", (5, 7), 3, False)]
    module = adapter.build(matrices, [Link(1, 0, "l")])
    w = torch.randn(6, 9)
    (new,) = module([w, torch.randn(5, 7)])
    assert torch.equal(new, w)
    (new * torch.randn(6, 9)).sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in module.parameters())
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


def test_evaluation_mode_remembers_nothing():
    module = built((6, 9), (5, 7)).eval()
    before = {name: b.clone() for name, b in module.named_buffers()}
    module([torch.randn(6, 9), torch.randn(5, 7)])
    assert all(torch.equal(b, before[name]) for name, b in module.named_buffers())


@given(st.floats(0, 1e3), st.floats(0, 1e3))
def test_the_limit_is_one_and_gradients_are_finite(size, limit):
    change = torch.full((2, 2), size / 2, requires_grad=True)
    result = limited(change, torch.tensor(limit))
    assert result.norm() <= min(size, limit) * (1 + 1e-5)
    result.sum().backward()
    assert change.grad.isfinite().all()


# ---------------------------------------------------------------------------------------------------------- row norms


@given(sizes, sizes, st.floats(1e-3, 1e3), st.sampled_from([1e-20, 1.0, 1e20]))
def test_each_row_keeps_its_norm_and_moves_no_further_than_its_change(rows, columns, size, unit):
    w = unit * torch.randn(rows, columns)
    change = unit * size * torch.randn(rows, columns)
    w[0] = 0
    new = kept_row_norms(w, change)
    norm = lambda x: (x / unit).norm(dim=1)  # noqa: E731
    torch.testing.assert_close(norm(new), norm(w), rtol=1e-4, atol=1e-5)
    assert (norm(new - w) <= norm(change) * (1 + 1e-4) + 1e-5).all()
    assert not new[0].any()


def test_rows_without_a_change_keep_their_bits():
    w = torch.randn(4, 5)
    w[1, 2] = -0.0
    new = kept_row_norms(w, torch.zeros(4, 5))
    assert torch.equal(new, w)
    assert torch.equal(torch.signbit(new), torch.signbit(w))


@pytest.mark.parametrize(("norm", "kept"), [("keep", True), ("free", False)])
def test_transfers_keep_row_norms_unless_asked_not_to(norm, kept):
    module = built((6, 9), (5, 7), trust=0.2, norm=norm)
    w = torch.randn(6, 9)
    (new,) = module([w, torch.randn(5, 7)])
    assert not torch.equal(new, w)
    assert torch.allclose(new.norm(dim=1), w.norm(dim=1), rtol=1e-5) is kept


# ----------------------------------------------------------------------------------------------------- learned factors


@pytest.mark.parametrize("trust", [0.01, "host"])
@pytest.mark.parametrize("compress", ["longer", "rows"])
def test_learned_factors_get_gradients_and_respect_the_bound(trust, compress):
    module = built((6, 9), (5, 7), re_encode="learned", trust=trust, compress=compress)
    with torch.no_grad():
        for encoding in module.encodings:
            encoding.read.mul_(3)
    w, v = torch.randn(6, 9), torch.randn(5, 7)
    w = module([w, v])[0].detach() + 0.1
    (new,) = module([w, v])
    bound = 0.01 * w.norm() if trust == 0.01 else 0.1 * torch.full((6, 9), 0.1).norm()
    assert 0 < (new - w).norm() < bound * (1 + 1e-3)
    (new * torch.randn(6, 9)).sum().backward()
    target, source = module.encodings
    for factor in (target.read, target.write, source.read):
        assert factor.grad.any()
        assert factor.grad.isfinite().all()
    assert source.write is None
