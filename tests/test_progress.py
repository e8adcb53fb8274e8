"""What long work says of itself becomes percent and time left on a terminal, and nothing anywhere else."""

import itertools
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from graftlib import Mapping, export_onnx, progress, slim, trace


@pytest.fixture
def shares(monkeypatch):
    """An open bar that remembers the shares that were reached."""
    reached = []

    class Remembers(progress._Bar):
        def __init__(self):
            super().__init__(None, None)

        def reach(self, share):
            reached.append(share)

        def pulse(self):
            pass

    token = progress._open.set(Remembers())
    yield reached
    progress._open.reset(token)


def test_a_bar_shows_percent_time_left_and_names_as_text(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # or rich would see no terminal here
    with progress.bar("[bold]task", show=True):
        for name in progress.track(["\x1b[31mred [bold]", "b", "c"]):
            progress.note(name)
            time.sleep(0.3)  # a bar looks ten times a second
            with progress.bar("inner", show=True):
                pass  # is a part of this one, and no second bar
    told = capsys.readouterr().err
    assert "[bold]task" in told
    assert "inner" not in told
    assert "100%" in told
    assert "left" in told
    with progress.bar("task"):
        progress.note("\x1b[31mred")
    assert capsys.readouterr().err == ""  # no terminal


def test_work_that_does_not_say_how_far_it_is_shows_no_percent(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.bar("task", show=True), progress.part(0.5, 1.0):
        time.sleep(0.3)
        assert "50%" in capsys.readouterr().err  # the probe sees a percent
        with progress.pulse():
            time.sleep(0.15)
            capsys.readouterr()
            time.sleep(0.3)
            told = capsys.readouterr().err
            assert "task" in told
            assert "%" not in told
        time.sleep(0.3)
        assert "50%" in capsys.readouterr().err


def test_a_note_is_one_short_line_without_control_characters():
    assert progress._short("\x1b[31m\nred") == "\\x1b[31m\\nred"
    assert len(progress._short("x" * 500)) == 60


def test_loops_inside_of_loops_are_shares_of_shares(shares):
    with progress.part(0.5, 1.0):
        for _ in progress.track("ab"):
            for _ in progress.track("xy"):
                pass
    assert shares == pytest.approx(
        [0.5, 0.5, 0.5, 0.625, 0.625, 0.75, 0.75, 0.75, 0.75, 0.875, 0.875, 1, 1, 1]
    )


trees = st.recursive(st.integers(0, 3), lambda inner: st.lists(inner, max_size=4), max_leaves=20)


@given(trees)
def test_it_never_goes_back_and_ends_whole(tree):
    reached = []
    bar = progress._Bar(None, None)
    bar.reach = reached.append
    token = progress._open.set(bar)

    def walk(node):
        for each in progress.track(range(node) if isinstance(node, int) else node):
            if isinstance(node, list):
                walk(each)

    with progress.part(0, 1):
        walk(tree)
    progress._open.reset(token)
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(reached))
    assert reached[-1] == pytest.approx(1)


def test_a_loop_of_unknown_length_says_nothing(shares):
    assert list(progress.track(iter("abc"))) == ["a", "b", "c"]
    assert shares == []
    assert list(progress.track(iter("abc"), 2)) == ["a", "b", "c"]
    assert max(shares) == 1  # more than was said


def test_a_loop_that_is_left_gives_its_share_back(shares):
    with progress.part(0, 0.5):
        for _ in progress.track("abcd"):
            break
    with progress.part(0.5, 1):
        pass
    assert shares[-1] == 1


def test_what_is_done_twice_is_not_undone():
    told = []
    bar = progress._Bar(type("Rich", (), {"update": lambda _, __, **now: told.append(now)})(), 0)
    bar.reach(0.5)
    bar.reach(0.2)
    assert [now["completed"] for now in told] == [0.5, 0.5]


def test_long_work_of_the_library_says_how_far_it_is(shares, tmp_path):
    """Each verb that the command line runs behind a bar, on a small model."""
    graph = trace(net(), torch.zeros(2, 3, 8, 8))
    data = [torch.rand(200, 3, 8, 8) for _ in range(2)]
    for work in (
        graph.check,
        lambda: slim(graph, budget={"macs": 0.5}, data=data),
        lambda: export_onnx(graph.model, tmp_path / "x.onnx", graph.example[0], measure=False),
        lambda: Mapping(graph, trace(net(), torch.zeros(2, 3, 8, 8))).auto(spectrum=True),
    ):
        shares.clear()
        work()
        assert len({share for share in shares if 0 < share < 1}) >= 2
        assert shares[-1] > 0.7


def net():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(256, 4)
    )
