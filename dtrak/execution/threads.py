"""How many threads torch computes with."""

import contextlib
from collections.abc import Iterator

import torch

_of_a_task = 1


def set_task_threads(count: int) -> None:
    """Let this process, a worker, compute on ``count`` threads."""
    global _of_a_task
    _of_a_task = count
    torch.set_num_threads(count)


@contextlib.contextmanager
def tasks_on(count: int) -> Iterator[None]:
    """Let tasks in this process compute on ``count`` threads, for a while."""
    global _of_a_task
    before, _of_a_task = _of_a_task, count
    try:
        yield
    finally:
        _of_a_task = before


@contextlib.contextmanager
def task_threads() -> Iterator[None]:
    """Run torch on as many threads as a task has: one, unless one of the functions above said otherwise.

    Sums then come in one order, whoever calls, so results repeat to the bit. And a small network
    on a busy machine is far faster on one: two threads that wait for each other at every layer stand
    still whenever a browser takes one of the cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(_of_a_task)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
