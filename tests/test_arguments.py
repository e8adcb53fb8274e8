"""Arguments that are not what they should be are refused by name, all at once; numbers of NumPy count as numbers."""

from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from graftlib import Mapping, surgery, trace
from graftlib.arguments import Positive, Share, check
from graftlib.errors import GraftError, MatchError, TraceError
from graftlib.surgery import SurgeryError


def test_what_is_right_passes():
    check(
        GraftError,
        a=(np.int64(3), Positive),
        b=(torch.tensor(0.5), Share),
        c=(range(3), list[int]),
        d=((0.1, np.float32(0.5)), list[Share]),
        e=(None, Positive | None),
        f=(nn.ReLU(), (nn.Module,)),
    )


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (object(), Positive),
        (True, Positive),
        (0, Positive),
        (10**400, Share),
        (float("nan"), Share),
        ("c", Literal["a", "b"]),
        ([1, object()], list[int]),
        (torch.zeros(3), Positive | None),
        (3, (nn.Module, type(None))),
    ],
)
def test_what_is_wrong_is_named(value, kind):
    with pytest.raises(MatchError, match="thing=") as error:
        check(MatchError, right=(1, int), thing=(value, kind))
    assert error.value.arguments == ("thing",)
    assert error.value.fix


def test_the_doors_name_the_argument():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(1, 3)
    graph = trace(model, x)
    for error, name, call in (
        (TraceError, "device", lambda: trace(model, x, device="gpu0")),
        (TraceError, "kwargs", lambda: trace(model, x, kwargs=3)),
        (MatchError, "limit", lambda: Mapping(graph, graph).auto(limit="3")),
        (SurgeryError, "ridge", lambda: surgery.prune(graph, 0.5, ridge="x")),
        (SurgeryError, "seed", lambda: surgery.permute(graph, seed=2**70)),
        (SurgeryError, "widths", lambda: surgery.widen(graph, {0: "x"})),
    ):
        with pytest.raises(error, match=f"{name}="):
            call()
