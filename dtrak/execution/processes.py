"""Work by several processes with threads of their own, that survives the death of one of them."""

import contextlib
import functools
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
from dataclasses import dataclass
from typing import Any, TypeVar

from dtrak.utils.errors import DtrakError

MOST_DEATHS = 2  # of processes in a row, with nothing finished between
POLL_SECONDS = 0.5
SPAWN = multiprocessing.get_context("spawn")
Make = Callable[..., Callable[[Any], Any]]
T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """How many processes work at a time, and with what.

    Attributes:
        workers: processes.
        threads: of each.
        gpus: CUDA devices, each for one process at a time; none if empty.
    """

    workers: int
    threads: int = 1
    gpus: tuple[str, ...] = ()


def in_processes(make: Make, arguments: tuple[Any, ...], tasks: Sequence[Any], processes: Processes) -> Iterator[Any]:
    """Results of ``make(*arguments)(task)`` as they come; the processes end with this one.

    A process calls ``make`` once. A task may run twice: when a process dies, what is unfinished goes to new ones.

    Raises:
        DtrakError: processes die without finishing anything.
    """
    left = dict(enumerate(tasks))
    deaths = 0
    while left:
        before = len(left)
        try:
            yield from _one_pool(make, arguments, left, processes)
        except BrokenProcessPool as error:
            deaths = 1 if len(left) < before else deaths + 1
            if deaths > MOST_DEATHS:
                raise died() from error


def died() -> DtrakError:
    """Said when workers die again and again."""
    return DtrakError(
        "Worker processes end without a word (killed, or out of memory?).",
        hint="Run the same command again with fewer --workers or a smaller --batch-size; what is finished is kept.",
    )


def _one_pool(make: Make, arguments: tuple[Any, ...], left: dict[int, Any], processes: Processes) -> Iterator[Any]:
    """One pool's results; finished tasks leave ``left``."""
    gpus = SPAWN.SimpleQueue() if processes.gpus else None
    for gpu in processes.gpus:
        gpus.put(gpu)  # type: ignore[union-attr]
    pool = ProcessPoolExecutor(
        min(processes.workers, len(left), len(processes.gpus) or len(left)),
        SPAWN,
        initializer=_start_in_pool,
        initargs=(make, arguments, processes.threads, gpus),
    )
    try:
        with _without_main():
            pending = {pool.submit(_work, task): number for number, task in left.items()}
        while pending:
            finished, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                result = future.result()
                del left[pending.pop(future)]
                yield result
    except BaseException:  # an interruption, or a task's error: what runs leaves files whole or absent, and may end
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def one_process_each(
    work: Callable[[T, Any], None],
    tasks: Sequence[T],
    processes: Processes,
    shared: Any,
    meanwhile: Callable[[], None],
) -> None:
    """``work(task, shared)`` for each task, in a process of its own that ends at once when it is no longer wanted.

    Args:
        shared: what a process may be started with, such as a shared array.
        meanwhile: called in this process, twice a second; what it raises ends all processes.

    Raises:
        DtrakError: a task raised it, or a process died.
    """
    waiting, running, gpus = list(tasks), dict[Any, Any](), list(processes.gpus)
    try:
        while waiting or running:
            while waiting and len(running) < processes.workers:
                mine, theirs = SPAWN.Pipe(duplex=False)
                gpu = gpus.pop() if gpus else None
                arguments = work, waiting.pop(0), shared, theirs, processes.threads, gpu
                process = SPAWN.Process(target=_alone, args=arguments, daemon=True)
                with _without_main():
                    process.start()
                theirs.close()
                running[process.sentinel] = process, mine, gpu
            for sentinel in multiprocessing.connection.wait(list(running), POLL_SECONDS):
                process, mine, gpu = running.pop(sentinel)
                process.join()
                if gpu is not None:
                    gpus.append(gpu)
                if error := _last_word(mine):
                    raise error
                if process.exitcode:
                    raise DtrakError(
                        f"A process ended with {process.exitcode} (killed, or out of memory?).",
                        hint="Run it again; what is finished is kept. The terminal has the details.",
                    )
            meanwhile()
    finally:
        for process, _, _ in running.values():
            process.terminate()
            process.join()


def _alone(work: Callable[[T, Any], None], task: T, shared: Any, parent: Any, threads: int, gpu: str | None) -> None:
    _start_process(threads, gpu)
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


_worker: Callable[[], Callable[[Any], Any]] | None = None


def _start_in_pool(make: Make, arguments: tuple[Any, ...], threads: int, gpus: Any) -> None:
    global _worker
    _start_process(threads, gpus.get() if gpus is not None else None)
    _worker = functools.cache(functools.partial(make, *arguments))


def _work(task: Any) -> Any:
    assert _worker is not None
    return _worker()(task)


def _start_process(threads: int, gpu: str | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before CUDA starts in this process
    from dtrak.execution.threads import set_task_threads

    set_task_threads(threads)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
