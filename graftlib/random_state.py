"""Random numbers of our own, beside the user's.

In: nothing, or a seed. Out: a block whose draws leave no mark. Always true: after the block the CPU's generator, and
that of every accelerator that has been initialised, is as it was before; one that has not is never woken.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

__all__ = ["all_preserved", "preserved"]


@contextlib.contextmanager
def preserved(seed: int | None = None) -> Iterator[None]:
    """Leave torch's random state as it was, on every device.

    Args:
        seed: what the draws inside start from, the same numbers as after ``torch.manual_seed(seed)``; None: from the
            user's own state.

    >>> before = torch.get_rng_state()
    >>> with preserved(0):
    ...     numbers = torch.rand(3)
    >>> torch.equal(before, torch.get_rng_state())
    True
    """
    module = _accelerator()
    devices = range(module.device_count()) if module is not None else ()
    with torch.random.fork_rng(devices=list(devices)):
        if seed is not None:
            # Not torch.manual_seed: it seeds every device, also those whose state nobody has saved.
            torch.default_generator.manual_seed(seed)
            for device in devices:
                module.default_generators[device].manual_seed(seed)
        yield


@contextlib.contextmanager
def all_preserved() -> Iterator[None]:
    """As `preserved`, and so are the random states of Python and NumPy."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with preserved():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _accelerator() -> Any:
    """The module of torch for the accelerator, where that has been initialised and has a generator for each device."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None:
        return None
    module = torch.get_device_module(accelerator)
    initialised = getattr(module, "is_initialized", lambda: False)
    return module if initialised() and hasattr(module, "default_generators") else None
