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
) -> Iterator[R]:
    """Results of ``work(task)`` as they come, from processes of one thread each; they end with this one.

    A task may run twice: when a process dies, what is unfinished goes to new processes.

    Args:
        start: called once in each process, with ``arguments``.

    Raises:
        DtrakError: processes die without finishing anything.
    """
    left = dict(enumerate(tasks))
    deaths = 0
    while left:
        before = len(left)
        try:
            yield from _one_pool(work, left, workers, start, arguments)
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
) -> Iterator[R]:
    """One pool's results; finished tasks leave ``left``."""
    pool = ProcessPoolExecutor(min(workers, len(left)), SPAWN, initializer=_start_worker, initargs=(start, arguments))
    try:
        with _without_main():
            pending = {pool.submit(work, task): number for number, task in left.items()}
        while pending:
            finished, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                result = future.result()
                del left[pending.pop(future)]
                yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def one_process_each(
    work: Callable[[T, Any], None], tasks: Sequence[T], workers: int, shared: Any, meanwhile: Callable[[], None]
) -> None:
    """``work(task, shared)`` for each task, in a process of its own that ends at once when it is no longer wanted.

    Args:
        workers: how many at a time.
        shared: what a process may be started with, such as a shared array.
        meanwhile: called in this process, twice a second; what it raises ends all processes.

    Raises:
        DtrakError: a task raised it, or a process died.
    """
    waiting, running = list(tasks), dict[Any, Any]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                mine, theirs = SPAWN.Pipe(duplex=False)
                process = SPAWN.Process(target=_alone, args=(work, waiting.pop(0), shared, theirs), daemon=True)
                with _without_main():
                    process.start()
                theirs.close()
                running[process.sentinel] = process, mine
            for sentinel in multiprocessing.connection.wait(list(running), POLL_SECONDS):
                process, mine = running.pop(sentinel)
                process.join()
                if error := _last_word(mine):
                    raise error
                if process.exitcode:
                    raise DtrakError(
                        f"A process ended with {process.exitcode} (killed, or out of memory?).",
                        hint="Run it again; what is finished is kept. The terminal has the details.",
                    )
            meanwhile()
    finally:
        for process, _ in running.values():
            process.terminate()
            process.join()


def _alone(work: Callable[[T, Any], None], task: T, shared: Any, parent: Any) -> None:
    _start_worker(None, ())
    try:
        work(task, shared)
    except DtrakError as error:
        parent.send((error.message, error.hint))


def _last_word(connection: Any) -> DtrakError | None:
    try:
        message, hint = connection.recv()
        return DtrakError(message, hint=hint)
    except EOFError:
        return None


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
