"""Write files whole or not at all, and read untrusted ones with a bound.

In: a path and what it shall hold. Out: the file. Always true: a reader sees the old file or the new one, never half of
it; where the disk refuses, or the write is interrupted, the old file is as it was and nothing is left beside it; what a
killed process left is removed by the next write into that folder. Regular files are replaced and keep their mode,
links are written through, and nothing else that has a name (a device, a FIFO, a folder) is ever replaced.

A temporary name ends in `TEMPORARY` and its file is locked for as long as its writer lives. The system takes the lock
off when a process dies, in whatever way, so one that can be locked is left over: no process number has to be believed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

from .errors import GraftError, shown

fcntl: Any
try:
    fcntl = import_module("fcntl")
except ImportError:  # Windows: nothing is locked, and so nothing is taken for left over
    fcntl = None

__all__ = [
    "TEMPORARY",
    "destination",
    "make_folder",
    "named",
    "place_all",
    "read_whole",
    "require_file",
    "scratch_folder",
    "unwritable",
    "write_whole",
]

TEMPORARY = ".graftlib-tmp"
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_FULL = {errno.ENOSPC, errno.EDQUOT}


def write_whole(
    path: str | os.PathLike[str], content: str | bytes, *, error: type[GraftError] = GraftError
) -> None:
    """Write `content` to a temporary name beside `path`, then rename it.

    Args:
        path: the file; its folder must exist. A link is written through; a file that is there keeps its mode.
        content: bytes, or text that is written as UTF-8 (what UTF-8 cannot hold, as a backslash escape).
        error: the member of the family to raise.

    Raises:
        GraftError: the path names no regular file, its folder does not exist or may not be written to, or the disk is
            full.
    """
    data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
    place = destination(path, error=error)
    try:
        remove_leftovers(place.parent)
        with _temporary_file(place) as (temporary, file):
            _take_over(file, place)
            with open(file, "wb", closefd=False) as stream:
                stream.write(data)
            os.fsync(file)
            temporary.replace(place)
        _flush(place.parent)
    except OSError as refusal:
        raise unwritable(path, refusal, error) from refusal


def destination(path: str | os.PathLike[str], *, error: type[GraftError] = GraftError) -> Path:
    """The file that writing to `path` would replace: `path` with its links followed.

    Raises:
        GraftError: `path` is no path, its folder does not exist, or what it names is no regular file.
    """
    try:
        text = _text_of(path)
        with contextlib.suppress(FileNotFoundError):
            _require_regular(os.stat(text).st_mode)  # noqa: PTH116 - Path("") would be the folder "."
        place = Path(os.path.realpath(text))
        if not place.parent.is_dir():
            raise FileNotFoundError(
                errno.ENOENT, f"the folder {shown(str(place.parent))} does not exist"
            )
    except (TypeError, ValueError, OSError) as refusal:
        raise unwritable(path, refusal, error) from None
    return place


def read_whole(
    path: str | os.PathLike[str], *, limit: int, error: type[GraftError] = GraftError
) -> bytes:
    """The bytes of a regular file.

    Args:
        path: the file.
        limit: the most bytes that it may have.
        error: the member of the family to raise.

    Raises:
        GraftError: there is no such file, it may not be read, is no regular file (a device or a FIFO would have no
            end), or is larger.
    """
    try:
        text = _text_of(path)
        _require_regular(os.stat(text).st_mode)  # noqa: PTH116 - to open a device may already do something
        # Should it be a FIFO by now, do not wait for its writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(text, flags), "rb") as file:
            _require_regular(os.fstat(file.fileno()).st_mode)
            data = file.read(limit + 1)
    except (TypeError, ValueError, OSError) as refusal:
        raise error(
            f"{named(path)} cannot be read.", why=_reason(refusal), fix="name a file that is there"
        ) from None
    if len(data) > limit:
        raise error(
            f"{named(path)} is too large.",
            why=f"more than {limit:,} bytes are not read",
            fix="name a file that graftlib wrote",
        )
    return data


def require_file(path: str | os.PathLike[str], *, error: type[GraftError] = GraftError) -> None:
    """Refuse a path that does not name a regular file, for readers that open it themselves.

    Raises:
        GraftError: nothing is there, or a device, a FIFO, a folder.
    """
    try:
        _require_regular(os.stat(_text_of(path)).st_mode)  # noqa: PTH116
    except (TypeError, ValueError, OSError) as refusal:
        raise error(
            f"{named(path)} cannot be read.", why=_reason(refusal), fix="name a file that is there"
        ) from None


def make_folder(path: str | os.PathLike[str], *, error: type[GraftError] = GraftError) -> Path:
    """The folder at `path`, made with its parents where it is missing.

    Raises:
        GraftError: it cannot be made, or something else has its name.
    """
    try:
        folder = Path(_text_of(path))
        folder.mkdir(parents=True, exist_ok=True)
    except (TypeError, ValueError, OSError) as refusal:
        raise error(
            f"the folder {named(path)} cannot be made.",
            why=_reason(refusal),
            fix="name a folder that you may write to",
        ) from None
    return folder


# --- several files that belong together -----------------------------------------------------------------------------


def place_all(moves: Sequence[tuple[Path | bytes | None, Path]]) -> None:
    """Put files that belong together in their places, one after the other; whatever stops it, the old ones come back.

    A process that is killed on the way leaves the first of the moves done and the others not, so the order says which
    sets can be seen: take away what describes a file before the file, and put it back after.

    Args:
        moves: (new, place), in order: a file on the disk of its place, what such a file shall hold, or None where the
            place shall be empty. Each place is one that `destination` gave.

    Raises:
        OSError: the disk refuses.
    """
    with contextlib.ExitStack() as stack:
        folders: dict[Path, Path] = {}
        for _, place in moves:
            if place.parent not in folders:
                folders[place.parent] = stack.enter_context(scratch_folder(place))
        files: list[tuple[Path | None, Path]] = []
        for number, (new, place) in enumerate(moves):
            file = new
            if isinstance(new, bytes):
                file = folders[place.parent] / f"new {number}"
                file.write_bytes(new)
            assert not isinstance(file, bytes)
            if file is not None:
                with file.open("rb+") as stream:
                    _take_over(stream.fileno(), place)
                    os.fsync(stream.fileno())
            files.append((file, place))
        for folder in folders:
            stack.enter_context(_alone_in(folder))
        _renamed(files, folders)


def _renamed(files: Sequence[tuple[Path | None, Path]], folders: dict[Path, Path]) -> None:
    done: list[tuple[Path, Path | None]] = []
    try:
        for number, (file, place) in enumerate(files):
            old: Path | None = None
            if place.exists():
                old = folders[place.parent] / f"old {number}"
                # A second name for the old file, so that its place is never empty; a copy where links are not known.
                try:
                    os.link(place, old)
                except OSError:
                    shutil.copy2(place, old)
            done.append((place, old))
            if file is None:
                place.unlink(missing_ok=True)
            else:
                file.replace(place)
        for folder in folders:
            _flush(folder)
    except BaseException:
        for place, old in reversed(done):
            with contextlib.suppress(OSError):
                if old is None:
                    place.unlink(missing_ok=True)
                else:
                    old.replace(place)
        raise


@contextlib.contextmanager
def scratch_folder(place: Path) -> Iterator[Path]:
    """A temporary folder beside the file `place`, on the same disk; it is gone afterwards.

    Raises:
        OSError: it cannot be made.
    """
    remove_leftovers(place.parent)
    folder, lock = _temporary_name(place), None
    try:
        folder.mkdir(mode=0o700)
        while (lock := _lock(folder)) is None and not folder.exists():
            folder = _temporary_name(place)
            folder.mkdir(mode=0o700)
        yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        finally:  # Ctrl-C in the middle: then the next write removes the rest
            if lock is not None:
                os.close(lock)


@contextlib.contextmanager
def _temporary_file(place: Path) -> Iterator[tuple[Path, int]]:
    """An empty file beside `place` under a name of its own, open and locked; gone afterwards unless it was renamed."""
    # Not tempfile: its files are private to the user, and a result is as readable as any other file.
    temporary, file = _temporary_name(place), None
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        mode = stat.S_IMODE(place.stat().st_mode) if place.exists() else 0o666
        while True:
            file = os.open(temporary, flags, mode & 0o777)
            if _locked(file) or temporary.exists():
                break
            os.close(file)  # another process took it for left over before it was locked
            temporary = _temporary_name(place)
        yield temporary, file
    finally:
        try:
            with contextlib.suppress(OSError):
                temporary.unlink()
        finally:
            if file is not None:
                os.close(file)


def _take_over(file: int, place: Path) -> None:
    """Give an open file the owner and the mode of the one that it will replace; the disk may refuse the owner."""
    try:
        old = place.stat()
    except FileNotFoundError:
        return
    new = os.fstat(file)
    if hasattr(os, "fchown") and (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        with contextlib.suppress(OSError):
            os.fchown(file, old.st_uid, old.st_gid)
    if hasattr(os, "fchmod"):
        os.fchmod(file, stat.S_IMODE(old.st_mode))


def _flush(folder: Path) -> None:
    """Make renames in a folder last through a power cut, where its disk can be asked to."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- leftovers ------------------------------------------------------------------------------------------------------


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders in `folder` whose process is dead; says nothing where that is refused."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError):
        names = [name for name in os.listdir(folder) if name.endswith(TEMPORARY)]  # noqa: PTH208
        for name in names:
            with contextlib.suppress(OSError):
                _remove_leftover(folder / name)


def _remove_leftover(path: Path) -> None:
    lock = _lock(path)
    if lock is None:
        return
    try:
        if stat.S_ISDIR(os.fstat(lock).st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    finally:
        os.close(lock)


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock of a temporary file or folder; None where somebody has it, or there are none."""
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if _locked(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _locked(descriptor: int) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody has it, or the disk knows no locks
        return False
    return True


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold other processes' sets of files back while one is put in place, where the disk knows locks."""
    descriptor = None
    if fcntl is not None:
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _temporary_name(place: Path) -> Path:
    return place.with_name(f".{place.name[:32]}.{uuid4().hex}{TEMPORARY}")


# --- refusals -------------------------------------------------------------------------------------------------------


def unwritable(path: object, refusal: Exception, error: type[GraftError]) -> GraftError:
    """The error for a path that the disk refuses to write."""
    number = getattr(refusal, "errno", None)
    fix = "name a file in a folder that exists and that you may write to"
    if number in _FULL:
        fix = "free some space on its disk, or name a file in a folder on another disk"
    if number == errno.ENOENT and isinstance(path, (str, Path)):
        folder = os.path.dirname(path)  # noqa: PTH120 - as it was written
        fix = f"create the folder first: Path({folder!r}).mkdir(parents=True)"
    return error(
        f"{named(path)} cannot be written; what was there before is unchanged.",
        why=_reason(refusal),
        fix=fix,
        path=path,
        errno=number,
    )


def named(path: object) -> str:
    """A path as an error quotes it."""
    return shown(str(path) if isinstance(path, os.PathLike) else path)


def _text_of(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    if not isinstance(text, str) or not text:
        raise TypeError(f"a path is text that names a file, not {shown(text)}")
    return text


def _require_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(errno.EISDIR, f"it is {kind}, and no regular file")


def _reason(refusal: Exception) -> str:
    return getattr(refusal, "strerror", None) or str(refusal) or type(refusal).__name__
