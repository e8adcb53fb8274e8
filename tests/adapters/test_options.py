"""Options are checked where the adapter is made; the message says how to mend them, and the advice works."""

import pytest
import torch

from graftlib.errors import GraftError
from graftlib_adapters import MergeNet, MLPAdapter, ParameterSharing


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (MergeNet, {"layers": 0}),
        (MergeNet, {"layers": 1.5}),
        (MergeNet, {"heads": True}),
        (MergeNet, {"max_rank": -1}),
        (MergeNet, {"width": 0}),
        (MergeNet, {"rank": 0}),
        (MergeNet, {"rank": 1.0}),
        (MergeNet, {"rank": 0.0}),
        (MergeNet, {"rank": float("nan")}),
        (MergeNet, {"rank": "full"}),
        (MergeNet, {"rank": True}),
        (MergeNet, {"init": "zero"}),
        (MergeNet, {"write": "overwrite"}),
        (MergeNet, {"signal": "grad"}),
        (MergeNet, {"omega": "sum"}),
        (MergeNet, {"compress": "columns"}),
        (MergeNet, {"pairings": ()}),
        (MergeNet, {"pairings": "rr"}),
        (MergeNet, {"pairings": ("rr", "xx")}),
        (MergeNet, {"pairings": ("rr", "rr")}),
        (MergeNet, {"residual": 1}),
        (MergeNet, {"norm": "unit"}),
        (MergeNet, {"re_encode": "qr"}),
        (MergeNet, {"host_share": 0}),
        (MergeNet, {"deterministic": "yes"}),
        (MergeNet, {"residual": False}),
        (MergeNet, {"residual": False, "rank": 0.9}),
        (MLPAdapter, {"width": 0}),
        (MLPAdapter, {"init": "zero"}),
        (MLPAdapter, {"write": None}),
        (MLPAdapter, {"signal": 3}),
        (ParameterSharing, {"write": "both"}),
    ],
)
def test_a_wrong_option_is_refused_with_the_way_out(make, wrong):
    with pytest.raises(GraftError) as caught:
        make(**wrong)
    assert caught.value.fix
    assert caught.value.option in wrong
    assert str(caught.value).startswith(caught.value.option)


def test_the_nearest_choice_is_named():
    with pytest.raises(GraftError, match=r"nearest +'trajectory'"):
        MergeNet(signal="trajectories")


@pytest.mark.parametrize("mended", [{"residual": True}, {"rank": None}, {"init": "paper"}])
def test_the_three_ways_out_of_a_lost_residual(mended):
    MergeNet(**{"residual": False, **mended})


@pytest.mark.parametrize("rank", [1, 500, None, 0.01, 0.99])
def test_what_is_a_rank(rank):
    resolved = MergeNet(rank=rank).rank(torch.randn(6, 9), 6)
    assert resolved is None if rank is None else 1 <= resolved <= 6


@pytest.mark.parametrize("trust", [0, -1, True, "much", float("nan")])
def test_what_is_no_trust(trust):
    with pytest.raises(GraftError, match="share of a norm"):
        MergeNet(trust=trust)


def test_an_adapter_prints_itself():
    assert "rank=0.5" in repr(MergeNet(rank=0.5))
    assert repr(MLPAdapter(width=3)).startswith("MLPAdapter(width=3, init='identity'")
    assert repr(ParameterSharing(write="probe")) == "ParameterSharing(write='probe')"
