"""Tasks on a Ray cluster (an optional requirement: ``pip install -r requirements-ray.txt``).

All nodes see the checkout and the workspace under the same paths (a shared folder; for the workspace, a URL does as
well, see :mod:`dtrak.study.remote`): tasks carry keys and write shards, and what several of them need is sent once, by
reference. A task whose worker or node is gone runs again elsewhere.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dtrak.config import ROOT
from dtrak.execution.engines import Results
from dtrak.execution.processes import Make, died
from dtrak.utils.errors import DtrakError

FOLDERS = ("DTRAK_WORKSPACE", "DTRAK_CONFIGS", "HF_HOME")
PASSED_ON = (*FOLDERS, "DTRAK_MEMORY", "HF_HUB_OFFLINE")
RETRIES = 5  # of one task, each after the loss of its worker or node
LOOPBACK = "127.0.0.1"
ANSWER_SECONDS = 5
START = "Start one with 'ray start --head', or leave out --address to start one here."


@dataclass(frozen=True)
class Ray:
    """A Ray cluster.

    Attributes:
        address: of its head ("10.0.0.5:6379"); None starts one on this machine, on loopback.
        workers: tasks at a time at most; None leaves it to the cluster, or takes the cores of this machine.
        threads: of a task, and the CPUs it asks for.
        gpus: of a task; 1 for tasks on CUDA.
    """

    address: str | None = None
    workers: int | None = None
    threads: int = 1
    gpus: float = 0

    def results(self, make: Make, arguments: tuple[Any, ...], tasks: Sequence[Any]) -> Results:
        """See :class:`dtrak.execution.engines.Engine`."""
        if not tasks:
            return
        ray = _import()
        with self._connected(ray):
            shared = ray.put((make, arguments))
            remote = ray.remote(num_cpus=self.threads, num_gpus=self.gpus, max_retries=RETRIES, max_calls=0)(_work)
            waiting, pending = list(reversed(tasks)), list[Any]()
            most = self.workers or len(tasks)
            try:
                while waiting or pending:
                    while waiting and len(pending) < most:
                        pending.append(remote.remote([shared], waiting.pop(), self.threads))
                    (finished,), pending = ray.wait(pending, num_returns=1)
                    yield _result(ray, finished)
            finally:
                for task in pending:
                    ray.cancel(task, force=True)

    @contextlib.contextmanager
    def _connected(self, ray: Any) -> Iterator[None]:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._require_answer()
        variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        variables |= {name: os.path.abspath(variables[name]) for name in FOLDERS if name in variables}
        runtime = {"env_vars": {**variables, "PYTHONPATH": os.pathsep.join([str(ROOT), *_paths()])}}
        given: dict[str, Any] = {"address": self.address}
        if self.address is None:
            given = {"address": "local", "_node_ip_address": LOOPBACK, "include_dashboard": False}
            if self.workers:
                given["num_cpus"] = self.workers * self.threads
        try:
            ray.init(**given, runtime_env=runtime, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise DtrakError(
                f"Ray did not start, or let us in at {self.address or 'this machine'}: {error}", hint=START
            ) from error
        try:
            self._require_room(ray)
            yield
        finally:
            ray.shutdown()

    def _require_room(self, ray: Any) -> None:
        """Refuse tasks that no node could take; Ray would wait for one for ever."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(n.get("CPU", 0) >= self.threads and n.get("GPU", 0) >= self.gpus for n in nodes):
            raise DtrakError(
                f"No node of the cluster has {self.threads} CPU{'s' if self.threads > 1 else ''}"
                f"{' and a GPU' if self.gpus else ''} for a task.",
                hint="Give fewer --threads, another --device, or add a node.",
            )

    def _require_answer(self) -> None:
        """Find out in seconds what Ray's own retries take minutes for."""
        host, _, port = (self.address or "").rpartition(":")
        if host and port.isdecimal():
            try:
                socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
            except OSError as error:
                raise DtrakError(f"No Ray cluster answers at {self.address}: {error}", hint=START) from error


def _paths() -> list[str]:
    known = os.environ.get("PYTHONPATH", "")
    return known.split(os.pathsep) if known else []


def _import() -> Any:
    try:
        import ray
    except ImportError as error:
        raise DtrakError("Ray is not installed.", hint="pip install -r requirements-ray.txt") from error
    return ray


def _result(ray: Any, finished: Any) -> Any:
    try:
        return ray.get(finished)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, DtrakError) else error from None
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError) as error:
        raise died() from error
    except ray.exceptions.RayError as error:
        raise DtrakError(f"Ray could not run a task: {error}", hint="Its logs are in /tmp/ray.") from error


_made: dict[str, Callable[[Any], Any]] = {}


def _work(shared: list[Any], task: Any, threads: int) -> Any:
    """In a worker of the cluster, which keeps what it made for the tasks that come after."""
    import ray

    from dtrak.execution.threads import set_task_threads

    set_task_threads(threads)
    (reference,) = shared  # inside a list, so that it is fetched here only where it is new
    key = reference.hex()
    if key not in _made:
        _made.clear()
        make, arguments = ray.get(reference)
        _made[key] = make(*arguments)
    return _made[key](task)
