"""Tasks for other processes, in a module of their own: a process that imports little starts quickly."""

import os
import signal
import time
from functools import partial

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


def on_cluster(folder):
    """Squares; "die" kills its worker once, "always" each time, "refuse" raises an error; "where", "job": tells it."""
    return partial(_on_cluster, folder)


def _on_cluster(folder, task):
    if task == "die":
        mark = os.path.join(folder, "died")
        if not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return "lived"
    if task == "always":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "refuse":
        raise DtrakError("no", hint="ask otherwise")
    if task == "job":
        import ray

        return ray.get_runtime_context().get_job_id()
    if task == "where":
        time.sleep(2)  # so that a slow node gets its first worker before all is done
        import ray

        return ray.get_runtime_context().get_node_id()
    return task**2


def command_line():
    """Runs a command and tells its exit code."""
    from index_builder.cli import app
    from tests.helpers import runner

    return lambda command: runner.invoke(app, command).exit_code


def device_seer():
    """Tells the GPU and the threads that its process was given, after a second."""
    return _see


def _see(task):
    import torch

    return os.environ.get("CUDA_VISIBLE_DEVICES"), torch.get_num_threads(), time.sleep(1)
