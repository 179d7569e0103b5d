"""Meeting a full memory with smaller batches."""

import gc
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from dtrak.utils.errors import DtrakError

T = TypeVar("T")


def with_smaller_batches(work: Callable[[int], T], size: int) -> tuple[T, int]:
    """``work(size)``, with half the size each time memory runs out; gives the size that went through.

    Says on standard error what it does. ``work`` must be able to start again.

    Raises:
        DtrakError: memory does not suffice for one at a time.
    """
    while True:
        try:
            return work(size), size
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
        if size <= 1:
            raise DtrakError(
                "Memory does not suffice, not even for a batch of one.",
                hint="Use fewer workers, a device with more memory, or a smaller model.",
            )
        size = max(1, size // 2)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(
            f"Out of memory: going on with batches of {size}; results stay the same up to rounding.",
            file=sys.stderr,
            flush=True,
        )


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory"))
