"""The schedule: which steps a transfer precedes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftlib import GraftError
from graftlib.graft import TransferCycle


@given(
    st.integers(1, 9), st.integers(0, 5), st.integers(0, 20), st.integers(0, 20), st.integers(1, 60)
)
def test_every_transfer_is_inside_its_window_and_on_its_phase(every, offset, start, more, total):
    """Agreement with the definition, written out."""
    cycle = TransferCycle(every, offset, start, start + more)
    steps = [t for t in range(80) if cycle.transfers(t, total)]
    assert steps == [
        t
        for t in range(offset, 80)
        if (t - offset) % every == 0 and start <= t < start + more and t < total
    ]
    assert cycle.count(total) == len(steps)


@given(st.integers(1, 9), st.floats(0, 1), st.integers(1, 200))
def test_a_share_of_training_is_that_many_steps(every, share, total):
    by_share = TransferCycle(every, stop=share)
    by_steps = TransferCycle(every, stop=round(share * total))
    assert [by_share.transfers(t, total) for t in range(total)] == [
        by_steps.transfers(t, total) for t in range(total)
    ]


def test_the_papers_cycle_transfers_at_multiples():
    """Pinned: eq. 7, t mod T_cycle = 0, with T_cycle 4."""
    assert [t for t in range(13) if TransferCycle(4).transfers(t)] == [0, 4, 8, 12]


def test_one_is_a_step_and_one_point_nought_is_all_of_training():
    assert not TransferCycle(1, stop=1).transfers(1, 10)
    assert TransferCycle(1, stop=1.0).transfers(9, 10)


@pytest.mark.parametrize(
    "wrong",
    [
        {"every": 0},
        {"every": 2.5},
        {"every": True},
        {"offset": -1},
        {"start": -0.1},
        {"stop": 1.5},
        {"start": 5, "stop": 3},
    ],
)
def test_what_cannot_be_a_schedule_is_refused(wrong):
    with pytest.raises(GraftError):
        TransferCycle(**wrong)


def test_a_share_without_a_total_says_what_is_missing():
    with pytest.raises(GraftError, match="total_steps"):
        TransferCycle(2, stop=0.5).transfers(3)
