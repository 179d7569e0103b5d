"""Work by several processes of one thread each, that survives the death of one of them."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from dtrak.errors import DtrakError

MOST_DEATHS = 2  # of processes in a row, with nothing finished between
POLL_SECONDS = 0.5
SPAWN = multiprocessing.get_context("spawn")
T = TypeVar("T")
R = TypeVar("R")


def in_processes(
    work: Callable[[T], R],
    tasks: Sequence[T],
    workers: int,
    start: Callable[..., None] | None = None,
    arguments: tuple[Any, ...] = (),
    meanwhile: Callable[[], None] | None = None,
) -> Iterator[R]:
    """Results of ``work(task)`` as they come, from processes of one thread each; they end with this one.

    A task may run twice: when a process dies, what is unfinished goes to new processes.

    Args:
        start: called once in each process, with ``arguments``.
        meanwhile: called in this process, twice a second; what it raises ends the work once running tasks have ended.

    Raises:
        DtrakError: processes die without finishing anything.
    """
    left = dict(enumerate(tasks))
    deaths = 0
    while left:
        before = len(left)
        try:
            yield from _one_pool(work, left, workers, start, arguments, meanwhile)
        except BrokenProcessPool as error:
            deaths = 1 if len(left) < before else deaths + 1
            if deaths > MOST_DEATHS:
                raise DtrakError(
                    "Worker processes end without a word (killed, or out of memory?).",
                    hint="Run the same command again with fewer --workers or a smaller --batch-size; "
                    "what is finished is kept.",
                ) from error


def _one_pool(
    work: Callable[[T], R],
    left: dict[int, T],
    workers: int,
    start: Callable[..., None] | None,
    arguments: tuple[Any, ...],
    meanwhile: Callable[[], None] | None,
) -> Iterator[R]:
    """One pool's results; finished tasks leave ``left``."""
    pool = ProcessPoolExecutor(min(workers, len(left)), SPAWN, initializer=_start_worker, initargs=(start, arguments))
    try:
        with _without_main():
            pending = {pool.submit(work, task): number for number, task in left.items()}
        while pending:
            finished, _ = wait(pending, POLL_SECONDS if meanwhile else None, FIRST_COMPLETED)
            if meanwhile:
                meanwhile()
            for future in finished:
                result = future.result()
                del left[pending.pop(future)]
                yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keep new processes from running the main module again, which in the app is a page's script."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start_worker(start: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    if start is not None:
        start(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
