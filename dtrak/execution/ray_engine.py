"""Running tasks on a Ray cluster (optional: ``pip install -r requirements-ray.txt``).

All nodes need the checkout and the workspace under the same paths, for example in a shared folder; the workspace can
be exchanged through a URL instead (:mod:`dtrak.study.remote`). Common arguments are sent once, by reference. A task
whose worker or node is lost runs again elsewhere.
"""

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dtrak.config import ROOT
from dtrak.execution.engines import Results
from dtrak.execution.processes import Make, died
from dtrak.execution.threads import THREADS, set_task_threads
from dtrak.utils.errors import DtrakError

FOLDERS = ("DTRAK_WORKSPACE", "DTRAK_CONFIGS", "HF_HOME")
PASSED_ON = (*FOLDERS, "DTRAK_MEMORY", "HF_HUB_OFFLINE")
RETRIES = 5  # per task, after the loss of its worker or node
LOOPBACK = "127.0.0.1"
ANSWER_SECONDS = 5
_connection: list[str] = []  # what this process has connected to, if it has
START = "Start a cluster with 'ray start --head', or omit --address to start one on this machine."


@dataclass(frozen=True)
class Ray:
    """A Ray cluster. This process stays connected to it, with its idle workers, until it ends or uses another.

    Attributes:
        address: address of the head node ("10.0.0.5:6379"); None starts a cluster on this machine, on loopback.
        workers: maximum number of concurrent tasks; None for as many as the cluster's or machine's cores allow.
        threads: threads per task, and CPUs that it reserves.
        gpus: GPUs that a task reserves; 1 for tasks on CUDA.
    """

    address: str | None = None
    workers: int | None = None
    threads: int = THREADS
    gpus: float = 0

    def results(self, make: Make, arguments: tuple[Any, ...], tasks: Sequence[Any]) -> Results:
        """See :class:`dtrak.execution.engines.Engine`."""
        if not tasks:
            return
        ray = _import()
        self._connect(ray)
        self._require_room(ray)
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

    def _connect(self, ray: Any) -> None:
        """Connect this process; the next call keeps the connection, as new workers take seconds to load libraries."""
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
        wanted = repr((given, runtime))
        if ray.is_initialized() and wanted in _connection:
            return
        if _connection:
            ray.shutdown()
            _connection.clear()
        try:
            ray.init(**given, runtime_env=runtime, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise DtrakError(
                f"Cannot start or reach Ray at {self.address or 'this machine'}: {error}", hint=START
            ) from error
        _connection.append(wanted)

    def _require_room(self, ray: Any) -> None:
        """Check that some node can run a task; Ray would wait indefinitely.

        Raises:
            DtrakError: no node can.
        """
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(n.get("CPU", 0) >= self.threads and n.get("GPU", 0) >= self.gpus for n in nodes):
            raise DtrakError(
                f"No node of the cluster has {self.threads} CPU{'s' if self.threads > 1 else ''}"
                f"{' and a GPU' if self.gpus else ''}, which each task needs.",
                hint="Lower --threads, change --device, or add a node.",
            )

    def _require_answer(self) -> None:
        """Check within seconds that the cluster answers; Ray's own retries take minutes.

        Raises:
            DtrakError: it does not answer.
        """
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
        raise DtrakError(f"Ray could not run a task: {error}", hint="See Ray's logs in /tmp/ray.") from error


_made: dict[str, Callable[[Any], Any]] = {}


def _work(shared: list[Any], task: Any, threads: int) -> Any:
    """Runs in a worker of the cluster, which reuses the result of ``make`` for later tasks."""
    import ray

    set_task_threads(threads)
    (reference,) = shared  # passed inside a list, so that Ray does not fetch it for every task
    key = reference.hex()
    if key not in _made:
        _made.clear()
        make, arguments = ray.get(reference)
        _made[key] = make(*arguments)
    return _made[key](task)
