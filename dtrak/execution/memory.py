"""Retrying with smaller batches when memory runs out."""

import gc
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from dtrak.utils.errors import DtrakError

T = TypeVar("T")


def with_smaller_batches(work: Callable[[int], T], size: int) -> tuple[T, int]:
    """Run ``work(size)``, halving the size each time memory runs out; returns the result and the size that worked.

    Each retry is reported on standard error. ``work`` must be restartable.

    Raises:
        DtrakError: memory is insufficient for a batch of one.
    """
    while True:
        try:
            return work(size), size
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
        if size <= 1:
            raise DtrakError(
                "Out of memory, even with a batch of one.",
                hint="Use fewer --workers, a device with more memory, or a smaller model.",
            )
        size = max(1, size // 2)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(
            f"Out of memory: continuing with batches of {size}; results are the same up to rounding.",
            file=sys.stderr,
            flush=True,
        )


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory"))
