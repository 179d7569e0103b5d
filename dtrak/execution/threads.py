"""The number of threads that torch uses; it is loaded on use."""

import contextlib
from collections.abc import Iterator

THREADS = 1  # of a task, unless a user says otherwise
_of_a_task = THREADS


def set_task_threads(count: int) -> None:
    """Use ``count`` threads in this worker process."""
    import torch

    global _of_a_task
    _of_a_task = count
    torch.set_num_threads(count)


@contextlib.contextmanager
def tasks_on(count: int) -> Iterator[None]:
    """Use ``count`` threads for tasks in this process, within the block."""
    global _of_a_task
    before, _of_a_task = _of_a_task, count
    try:
        yield
    finally:
        _of_a_task = before


@contextlib.contextmanager
def task_threads() -> Iterator[None]:
    """Run torch with the threads of a task: one, unless set by one of the functions above.

    A fixed number fixes the order of sums, so results are bit-identical. Small networks on a busy machine are
    also much faster with one thread: several would wait for each other at every layer.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(_of_a_task)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
