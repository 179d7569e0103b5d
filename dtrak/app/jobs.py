"""Job queues with one worker thread each; only one of them uses models, so concurrent users cannot interfere."""

import functools
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dtrak.utils.errors import DtrakError


class Cancelled(Exception):
    """Raised inside a job that was cancelled."""


@dataclass(eq=False)
class Job:
    """One unit of work, observed from other threads.

    Attributes:
        state: "queued", "running", "done", "failed" or "cancelled".
        done, total: progress, in the job's own units.
        started: monotonic time in seconds at which it began to run.
        preview: images to show while it runs.
        result: its return value.
        error: message and hint for the user, if it failed.
    """

    key: str
    state: str = "queued"
    done: int = 0
    total: int = 1
    started: float = 0.0
    preview: Any = None
    result: Any = None
    error: DtrakError | None = None
    _cancel: threading.Event = field(default_factory=threading.Event)

    @property
    def active(self) -> bool:
        """Whether it is queued or running."""
        return self.state in ("queued", "running")

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds left; None in the first 5 seconds."""
        passed = time.monotonic() - self.started
        if self.state != "running" or not self.done or passed < 5:
            return None
        return passed * (self.total - self.done) / self.done

    def cancel(self) -> None:
        """Request a stop at the next step; a queued job is cancelled at once."""
        self._cancel.set()
        if self.state == "queued":
            self.state = "cancelled"

    def progress(self, done: int, total: int, preview: Any = None) -> None:
        """Report progress; the work calls it after each step.

        Raises:
            Cancelled: the job was cancelled.
        """
        if self._cancel.is_set():
            raise Cancelled
        self.done, self.total = done, total
        if preview is not None:
            self.preview = preview


class JobQueue:
    """Runs jobs one at a time, in order of submission; the latest ``keep`` finished ones stay readable."""

    def __init__(self, keep: int = 64):
        self._keep = keep
        self._jobs: dict[str, Job] = {}
        self._waiting: list[tuple[Job, Callable[[Job], Any]]] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name="dtrak-worker", daemon=True).start()

    def submit(self, key: str, work: Callable[[Job], Any]) -> Job:
        """Queue ``work``; if a job with the same key is active, return that one instead."""
        with self._changed:
            current = self._jobs.get(key)
            if current is not None and current.active:
                return current
            job = Job(key)
            self._jobs.pop(key, None)
            self._jobs[key] = job
            self._waiting.append((job, work))
            for old in [k for k, j in self._jobs.items() if not j.active][: -self._keep]:
                del self._jobs[old]
            self._changed.notify_all()
            return job

    def drop(self, job: Job) -> None:
        """Remove a job that has not started; it never runs."""
        with self._changed:
            if job.state == "queued":
                job.state = "cancelled"
                self._waiting = [(other, work) for other, work in self._waiting if other is not job]
                self._jobs.pop(job.key, None)

    def active(self) -> list[Job]:
        """Queued and running jobs, in order."""
        with self._changed:
            return [job for job in self._jobs.values() if job.active]

    def get(self, key: str) -> Job | None:
        """The latest job with that key, or None."""
        return self._jobs.get(key)

    def position(self, job: Job) -> int:
        """The number of jobs ahead of this one; 0 for the running one."""
        with self._changed:
            ahead = [j for j in self._jobs.values() if j.active]
            return ahead.index(job) if job in ahead else 0

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                job, work = self._waiting.pop(0)
                if job.state == "cancelled":
                    continue
                job.state, job.started = "running", time.monotonic()
            try:
                job.progress(0, job.total)
                job.result = work(job)
                job.state = "done"
            except Cancelled:
                job.state = "cancelled"
            except DtrakError as error:
                job.error, job.state = error, "failed"
            except Exception as error:
                traceback.print_exc()
                job.error = DtrakError(f"Unexpected error: {error}", hint="See the terminal for details.")
                job.state = "failed"


@functools.cache
def queue() -> JobQueue:
    """The process's queue for everything that uses a model."""
    return JobQueue()


@functools.cache
def queue_beside() -> JobQueue:
    """The background queue, for evidence; its jobs use features but no model."""
    return JobQueue()


@functools.cache
def retraining_queue() -> JobQueue:
    """The queue for retraining, which takes minutes and uses none of this process's models."""
    return JobQueue()
