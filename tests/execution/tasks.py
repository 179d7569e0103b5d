"""Tasks for other processes, in a module of their own: a process that imports little starts quickly."""

import os
import time

from dtrak.utils.errors import DtrakError


def as_given(work):
    """The function that runs a task is the argument itself."""
    return work


def basename():
    """The function that runs a task is ``os.path.basename``."""
    return os.path.basename


def die(*arguments):
    """Kill the process."""
    os._exit(9)


def die_once(path):
    """The first call kills its process; later calls succeed."""
    if not os.path.exists(path):
        open(path, "w").close()
        os._exit(9)
    return os.path.basename(path)


def refuse(task, shared):
    """Raise an error that tells the task."""
    raise DtrakError(f"no {task}", hint="another")


def count(task, shared):
    """Count the task as begun; task 0 does not end by itself."""
    shared[task] += 1
    if task == 0:
        time.sleep(60)
