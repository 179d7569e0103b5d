"""Running tasks in several processes; tasks of a crashed process are run again."""

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
from multiprocessing import forkserver
from typing import Any, TypeVar

from dtrak.execution.threads import THREADS, set_task_threads
from dtrak.utils.errors import DtrakError

MOST_DEATHS = 2  # consecutive crashes without a finished task that are tolerated
POLL_SECONDS = 0.5
# Where it exists, a server process loads what work needs once, and every other process is a copy of it: seconds less
# each. They are named, not imported, as they are above this package.
LOADED_ONCE = ["dtrak.build.features", "dtrak.evaluation.removal"]
CONTEXT: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
_starting = threading.Lock()
Make = Callable[..., Callable[[Any], Any]]
T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """Processes and their resources.

    Attributes:
        workers: number of processes.
        threads: threads per process.
        gpus: CUDA devices, each used by one process at a time; empty for none.
    """

    workers: int
    threads: int = THREADS
    gpus: tuple[str, ...] = ()


def in_processes(make: Make, arguments: tuple[Any, ...], tasks: Sequence[Any], processes: Processes) -> Iterator[Any]:
    """Yield the results of ``make(*arguments)(task)`` as they complete; the processes end with this one.

    Each process calls ``make`` once. If a process crashes, unfinished tasks run again in new processes.

    Raises:
        DtrakError: processes crash repeatedly without finishing a task, or a task raised it.
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
    """The error for workers that crash repeatedly."""
    return DtrakError(
        "Worker processes exit without an error message (killed, or out of memory?).",
        hint="Run the same command again with fewer --workers or a smaller --batch-size; finished work is kept.",
    )


def _one_pool(make: Make, arguments: tuple[Any, ...], left: dict[int, Any], processes: Processes) -> Iterator[Any]:
    """Yield the results of one process pool; finished tasks are removed from ``left``."""
    _ensure_server()
    gpus: Any = CONTEXT.SimpleQueue() if processes.gpus else None
    for gpu in processes.gpus:
        gpus.put(gpu)
    pool = ProcessPoolExecutor(
        min(processes.workers, len(left), len(processes.gpus) or len(left)),
        CONTEXT,
        initializer=_start_in_pool,
        initargs=(make, arguments, dict(os.environ), processes.threads, gpus),
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
    except BaseException:  # interruption or task error; files are written atomically, so processes may be killed
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
    """Run ``work(task, shared)`` for each task in a process of its own, which can be stopped at any time.

    Args:
        shared: passed to each process, such as a shared array.
        meanwhile: called in this process, twice a second; an exception from it stops all processes.

    Raises:
        DtrakError: a task raised it, or a process crashed.
    """
    _ensure_server()
    waiting, running, gpus = list(tasks), dict[Any, Any](), list(processes.gpus)
    try:
        while waiting or running:
            while waiting and len(running) < processes.workers:
                mine, theirs = CONTEXT.Pipe(duplex=False)
                gpu = gpus.pop() if gpus else None
                arguments = work, waiting.pop(0), shared, theirs, dict(os.environ), processes.threads, gpu
                process = CONTEXT.Process(target=_alone, args=arguments, daemon=True)
                with _without_main():
                    process.start()
                theirs.close()
                running[process.sentinel] = process, mine, gpu
            for sentinel in multiprocessing.connection.wait(list(running), POLL_SECONDS):
                process, mine, gpu = running.pop(sentinel)
                process.join()
                if gpu is not None:
                    gpus.append(gpu)
                if error := _reported_error(mine):
                    raise error
                if process.exitcode:
                    raise DtrakError(
                        f"A process exited with code {process.exitcode} (killed, or out of memory?).",
                        hint="Run it again; finished work is kept. See the terminal for details.",
                    )
            meanwhile()
    finally:
        for process, _, _ in running.values():
            process.terminate()
            process.join()


def _alone(
    work: Callable[[T, Any], None],
    task: T,
    shared: Any,
    parent: Any,
    environment: dict[str, str],
    threads: int,
    gpu: str | None,
) -> None:
    _start_process(environment, threads, gpu)
    try:
        work(task, shared)
    except DtrakError as error:
        parent.send((error.message, error.hint))


def _reported_error(connection: Any) -> DtrakError | None:
    try:
        message, hint = connection.recv()
        return DtrakError(message, hint=hint)
    except EOFError:
        return None


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keep new processes from importing the main module, which in the app is a page's script."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _ensure_server() -> None:
    """Start the server process, if there is none, with the modules that this process would import."""
    if sys.platform != "linux":
        return
    with _starting:
        before = {name: os.environ.get(name) for name in ("PYTHONPATH", "PYTHONSAFEPATH")}
        os.environ |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONSAFEPATH": "1"}
        CONTEXT.set_forkserver_preload(LOADED_ONCE)
        try:
            forkserver.ensure_running()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


_worker: Callable[[], Callable[[Any], Any]] | None = None


def _start_in_pool(
    make: Make, arguments: tuple[Any, ...], environment: dict[str, str], threads: int, gpus: Any
) -> None:
    global _worker
    _start_process(environment, threads, gpus.get() if gpus is not None else None)
    _worker = functools.cache(functools.partial(make, *arguments))


def _work(task: Any) -> Any:
    assert _worker is not None
    return _worker()(task)


def _start_process(environment: dict[str, str], threads: int, gpu: str | None) -> None:
    os.environ.clear()  # the server's, which may have changed here since
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles interruptions
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # must be set before CUDA is initialised
    set_task_threads(threads)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
