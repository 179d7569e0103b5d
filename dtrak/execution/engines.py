"""Engines: who carries out a list of tasks. Results do not depend on the engine.

A task is a pure function of its keys and leaves files that are whole or absent (see :mod:`dtrak.utils.files`), so it
may run anywhere, in any order, and twice. :class:`Local` uses
this machine; :mod:`dtrak.execution.ray_engine` a Ray cluster.
"""

import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dtrak.execution.processes import Make, Processes, in_processes
from dtrak.execution.threads import tasks_on
from dtrak.utils.errors import DtrakError

Results = Generator[Any, None, None]  # to be closed: that ends what still runs


class Engine(Protocol):
    """What carries out tasks."""

    def results(self, make: Make, arguments: tuple[Any, ...], tasks: Sequence[Any]) -> Results:
        """Results of ``make(*arguments)(task)`` as they come; each worker calls ``make`` once.

        Raises:
            DtrakError: a task raised it, or workers die again and again.
        """
        ...


@dataclass(frozen=True)
class Local:
    """This machine: ``workers`` processes of ``threads`` threads, or this process itself for one worker.

    Attributes:
        gpus: CUDA devices, one a process, as CUDA_VISIBLE_DEVICES has them.
    """

    workers: int = 1
    threads: int = 1
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
    """The engine of this machine.

    Args:
        workers: None takes as many as the cores have room for at ``threads`` each, or one a GPU.
        device: of the tasks. "cuda" spreads over all GPUs; "cuda:1" and others are used by this process alone.

    Raises:
        DtrakError: there are more workers than GPUs.
    """
    if device == "cpu":
        return Local(workers or max(1, cores() // threads), threads)
    gpus = visible_gpus() if device == "cuda" else ()
    count = workers or max(1, len(gpus))
    if count > max(1, len(gpus)):
        raise DtrakError(
            f"{count} workers want a GPU each; {device} is {len(gpus) or 1}.", hint="Give fewer --workers, or none."
        )
    return Local(count, threads, gpus[:count]) if count > 1 else Local(1, threads)


def visible_gpus() -> tuple[str, ...]:
    """The CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return tuple(named.split(",")[:count]) if named else tuple(str(i) for i in range(count))


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
