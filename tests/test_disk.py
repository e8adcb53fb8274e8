"""A file is written whole or not at all."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from graftlib.disk import (
    TEMPORARY,
    make_folder,
    place_all,
    read_whole,
    scratch_folder,
    write_whole,
)
from graftlib.errors import GraftError, MappingError


def test_a_written_file_is_whole_and_alone(tmp_path: Path):
    target = tmp_path / "graph.json"
    target.write_text("old")
    write_whole(target, "new\udcff")
    assert target.read_text() == "new\\udcff"
    assert list(tmp_path.iterdir()) == [target]
    plain = tmp_path / "plain"
    plain.touch()
    assert target.stat().st_mode == plain.stat().st_mode


def test_a_folder_that_is_not_there_is_an_error_with_a_fix(tmp_path: Path):
    with pytest.raises(GraftError, match=r"cannot be written[\s\S]*fix .*folder"):
        write_whole(tmp_path / "absent" / "graph.json", "{}")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "graph.json"
    target.write_text("old")

    def full(self: Path, other: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(GraftError, match="No space left"):
        write_whole(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_bytes_are_written_as_they_are_and_the_error_is_the_rooms_own(tmp_path: Path):
    write_whole(tmp_path / "x", b"\x00\xff")
    assert (tmp_path / "x").read_bytes() == b"\x00\xff"
    with pytest.raises(MappingError, match="what was there before is unchanged"):
        write_whole(tmp_path / "x" / "y", "", error=MappingError)


# --- what a path may name -------------------------------------------------------------------------------------------


def test_a_file_keeps_its_mode_and_a_link_its_place(tmp_path: Path):
    real, link, dangling = tmp_path / "real", tmp_path / "link", tmp_path / "dangling"
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to("real")
    dangling.symlink_to("elsewhere")
    write_whole(link, "new")
    write_whole(dangling, "new")
    assert link.is_symlink()
    assert dangling.is_symlink()
    assert real.read_text() == (tmp_path / "elsewhere").read_text() == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o600


def test_a_private_file_is_private_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    target, modes = tmp_path / "key", []
    target.write_text("old")
    target.chmod(0o600)
    honest = os.fsync

    def look(file: int) -> None:
        modes.append(stat.S_IMODE(os.fstat(file).st_mode))
        honest(file)

    monkeypatch.setattr(os, "fsync", look)
    write_whole(target, "new")
    assert modes[0] == 0o600


def device(folder: Path) -> Path:
    return Path(os.devnull)


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo")
    return folder / "fifo"


def link_to_a_fifo(folder: Path) -> Path:
    (folder / "link").symlink_to(fifo(folder))
    return folder / "link"


def listener(folder: Path) -> Path:
    here = Path.cwd()
    os.chdir(folder)  # the name of a socket may have 107 letters
    socket.socket(socket.AF_UNIX).bind("socket")
    os.chdir(here)
    return folder / "socket"


def a_folder(folder: Path) -> Path:
    return folder


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("special", [device, fifo, link_to_a_fifo, listener, a_folder])
def test_what_is_no_regular_file_is_never_replaced_nor_read(tmp_path: Path, special):
    path = special(tmp_path)
    before = path.lstat()
    with pytest.raises(GraftError, match="no regular file"):
        write_whole(path, "new")
    with pytest.raises(GraftError, match="no regular file"):
        read_whole(path, limit=10)
    assert os.path.samestat(path.lstat(), before)


@pytest.mark.parametrize(
    "path", ["", ".", "/", "..", "a\0b", "x" * 300, "y/" * 3000, "\ud800/x", None, 3, b"bytes"]
)
def test_a_path_that_is_none_is_refused(path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for use in (
        lambda: write_whole(path, "new"),
        lambda: read_whole(path, limit=10),
        lambda: make_folder(path) if path not in (".", "/", "..") else write_whole(path, ""),
    ):
        with pytest.raises(GraftError) as caught:
            use()
        assert len(str(caught.value)) < 1500
        assert caught.value.why
        assert caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_the_advice_on_a_missing_folder_works(tmp_path: Path):
    path = tmp_path / "a" / "b" / "x"
    with pytest.raises(GraftError) as caught:
        write_whole(path, "new")
    exec(caught.value.fix.split(": ", 1)[1], {"Path": Path})
    write_whole(path, "new")


def test_no_more_is_read_than_the_limit(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"12345")
    assert read_whole(tmp_path / "x", limit=5) == b"12345"
    with pytest.raises(GraftError, match="too large"):
        read_whole(tmp_path / "x", limit=4)


# --- what killed processes leave ------------------------------------------------------------------------------------

DIES = """
import os, sys
from pathlib import Path
from graftlib import disk
place = Path(sys.argv[1])
def die(*args):
    os.kill(os.getpid(), 9)
if sys.argv[2] == "file":
    Path.replace = die
    disk.write_whole(place, "half")
else:
    with disk.scratch_folder(place) as folder:
        (folder / "part").write_text("half")
        die()
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_next_write_removes_what_a_killed_one_left(tmp_path: Path, kind: str):
    unrelated = tmp_path / ".mine.tmp"
    unrelated.touch()
    subprocess.run([sys.executable, "-c", DIES, str(tmp_path / "x"), kind], check=False)
    assert len(list(tmp_path.iterdir())) == 2, "the kill left nothing: this test tests nothing"
    write_whole(tmp_path / "y", "new")
    assert sorted(tmp_path.iterdir()) == [unrelated, tmp_path / "y"]


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path):
    with scratch_folder(tmp_path / "x") as folder:
        write_whole(tmp_path / "y", "new")
        assert folder.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["y"]


# --- files that belong together -------------------------------------------------------------------------------------

CALLS = ("replace", "rename", "link", "unlink", "mkdir", "fsync", "rmdir")


def interrupted(monkeypatch, at: int, late: bool) -> None:
    """Ctrl-C at the `at`-th call that changes a disk, before it is made or after."""
    count = [0]

    def broken(honest):
        def call(*args, **kwargs):
            count[0] += 1
            if count[0] == at and not late:
                raise KeyboardInterrupt
            result = honest(*args, **kwargs)
            if count[0] == at and late:
                raise KeyboardInterrupt
            return result

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, broken(getattr(os, name)))


@pytest.mark.parametrize("late", [False, True])
def test_an_interrupt_at_any_point_leaves_the_old_set_or_the_new_one(tmp_path: Path, late: bool):
    model, card, data = (tmp_path / name for name in ("model", "card", "new data"))
    reached = 0
    for at in range(1, 60):
        for path in (model, card):
            path.write_text("old")
        data.unlink(missing_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            interrupted(patch, at, late)
            try:
                place_all([(b"new", data), (None, card), (b"new", model), (b"new", card)])
            except KeyboardInterrupt:
                reached += 1
        now = {p.name: p.read_text() for p in tmp_path.iterdir() if not p.name.endswith(TEMPORARY)}
        old, new = (
            {"model": "old", "card": "old"},
            dict.fromkeys(("model", "card", "new data"), "new"),
        )
        assert now in (old, new), f"mixed after interrupt {at}: {now}"
        write_whole(tmp_path / "next", "")
        (tmp_path / "next").unlink()
        assert not [p for p in tmp_path.iterdir() if p.name.endswith(TEMPORARY)]
    assert 10 < reached < 59


def test_a_set_that_is_only_renamed_would_be_seen_mixed(tmp_path: Path):
    """The control of the test above: without the way back an interrupt mixes old and new."""
    for name in ("model", "card"):
        (tmp_path / name).write_text("old")
        (tmp_path / f"new {name}").write_text("new")
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, 2, False)
        (tmp_path / "new model").replace(tmp_path / "model")
        with pytest.raises(KeyboardInterrupt):
            (tmp_path / "new card").replace(tmp_path / "card")
    assert [(tmp_path / name).read_text() for name in ("model", "card")] == ["new", "old"]
