"""How many threads torch computes with."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread.

    Sums then come in one order, whoever calls, so results repeat to the bit. And a small network
    on a busy machine is far faster so: two threads that wait for each other at every layer stand
    still whenever a browser takes one of the cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
