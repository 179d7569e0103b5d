"""Engines run a list of tasks; results do not depend on the engine.

A task is a pure function of its arguments and writes files atomically (see :mod:`dtrak.utils.files`), so it may
run anywhere, in any order, and more than once. :class:`Local` runs tasks on this machine,
:mod:`dtrak.execution.ray_engine` on a Ray cluster.
"""

import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dtrak.execution.processes import Make, Processes, in_processes
from dtrak.execution.threads import THREADS, tasks_on
from dtrak.utils.errors import DtrakError

Results = Generator[Any, None, None]  # closing it stops the tasks that still run


class Engine(Protocol):
    """Runs tasks."""

    def results(self, make: Make, arguments: tuple[Any, ...], tasks: Sequence[Any]) -> Results:
        """Yield the results of ``make(*arguments)(task)`` as they complete; each worker calls ``make`` once.

        Raises:
            DtrakError: a task raised it, or workers crash repeatedly.
        """
        ...


@dataclass(frozen=True)
class Local:
    """Runs tasks on this machine, in ``workers`` processes; a single worker runs in this process.

    Attributes:
        workers: number of processes.
        threads: threads per process.
        gpus: CUDA devices, one per process, as named in CUDA_VISIBLE_DEVICES.
    """

    workers: int = 1
    threads: int = THREADS
    gpus: tuple[str, ...] = ()

    @property
    def processes(self) -> Processes:
        """The workers as processes."""
        return Processes(self.workers, self.threads, self.gpus)

    def results(self, make: Make, arguments: tuple[Any, ...], tasks: Sequence[Any]) -> Results:
        """See :class:`Engine`."""
        if not tasks:
            return
        if self.workers > 1 and len(tasks) > 1:
            yield from in_processes(make, arguments, tasks, self.processes)
            return
        with tasks_on(self.threads):
            yield from map(make(*arguments), tasks)


def local(workers: int | None, threads: int, device: str) -> Local:
    """The engine for this machine.

    Args:
        workers: default as many as the cores allow with ``threads`` each, or one per GPU.
        threads: threads per worker.
        device: device of the tasks. "cuda" uses all GPUs; others, such as "cuda:1", a single process.

    Raises:
        DtrakError: more workers than GPUs are requested.
    """
    if device == "cpu":
        return Local(workers or max(1, cores() // threads), threads)
    gpus = visible_gpus() if device == "cuda" else ()
    available = max(1, len(gpus))
    count = workers or available
    if count > available:
        raise DtrakError(
            f"{count} workers requested, {available} GPU{'s' if available > 1 else ''} available.",
            hint="Lower --workers or omit it.",
        )
    return Local(count, threads, gpus[:count]) if count > 1 else Local(1, threads)


def visible_gpus() -> tuple[str, ...]:
    """The CUDA devices that this process may use, as named in CUDA_VISIBLE_DEVICES."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return tuple(named.split(",")[:count]) if named else tuple(str(i) for i in range(count))


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
