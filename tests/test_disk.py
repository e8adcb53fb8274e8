"""A file is written whole or not at all."""

from pathlib import Path

import pytest

from graftlib.disk import write_whole
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
