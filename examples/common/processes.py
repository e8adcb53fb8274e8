"""A measurement in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from typing import Any

__all__ = ["ProcessError", "apart"]


class ProcessError(RuntimeError):
    """The process failed; `stopped` where it had used up its time."""

    def __init__(self, text: str, stopped: bool) -> None:
        super().__init__(text)
        self.stopped = stopped


def apart(module: str, *words: object, limit: int | None = None) -> Any:
    """What ``python -m module words`` prints in its last line, read as JSON.

    Args:
        module: a file's ``__spec__.name``.
        words: of the command line.
        limit: processor seconds after which it is stopped.

    Raises:
        ProcessError: it failed, or was stopped.
    """

    def bound() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))

    command = [sys.executable, "-m", module, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=bound, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [""]
        raise ProcessError(last[0][:200], done.returncode < 0)
    return json.loads(done.stdout.splitlines()[-1])
