"""Significance and stability of rankings, computed at once in small studies and by background jobs in large ones."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from dtrak.analysis.evidence import Stability, stability
from dtrak.analysis.significance import Null, Verdict, null_of
from dtrak.app.jobs import Job, queue_beside
from dtrak.app.runs import Run
from dtrak.index.faiss_index import MANY_NUMBERS
from dtrak.methods.attributor import Attributor, Features
from dtrak.methods.query import Query
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting
from dtrak.utils.errors import DtrakError
from dtrak.utils.latest import Latest

CACHE_SIZE = 64


@dataclass(frozen=True)
class Evidence:
    """The evidence for one ranking.

    Attributes:
        null: null distribution of the significance test; None if there is none.
        verdict: its outcome for this ranking.
        stable: stability under resampling; None for methods without it.
        reason: why there is no significance test.
    """

    null: Null | None
    verdict: Verdict | None
    stable: Stability | None
    reason: str = ""


class EvidenceJobs:
    """Computes the evidence for a study's rankings, and keeps the latest results.

    Args:
        lock: held while evidence is computed in the page's own thread.
        features: the stored features of a picture for some settings, or None.
        query: a picture as a query.
    """

    def __init__(
        self,
        attributor: Attributor,
        lock: AbstractContextManager[Any],
        features: Callable[[Run, Sequence[Setting]], Features | None],
        query: Callable[[Run], Query],
    ):
        self._attributor, self._lock, self._features, self._query = attributor, lock, features, query
        self._cache = Latest[Any](CACHE_SIZE)
        self._opened = time.monotonic_ns()  # in the job keys: a rebuilt study must not reuse the jobs of the old one

    def of(self, run: Run, setting: Setting, top: int) -> Evidence | None:
        """The evidence for a ranking; None in a large study until :meth:`job` has computed it.

        Args:
            run: its features must be computed.
            top: number of places that count as the top in the stability.
        """
        if not self._is_large(setting):
            with self._lock:
                return self._compute(run, setting, top, Job(""))
        job = queue_beside().get(self._key(run, setting, top))
        return job.result if job is not None and job.state == "done" else None

    def job(self, run: Run, setting: Setting, top: int, again: bool = False) -> Job:
        """The latest job that computes the evidence in a large study; queued if there is none.

        Args:
            again: also queue it if the latest one failed or was cancelled.
        """
        key = self._key(run, setting, top)
        job = queue_beside().get(key)
        if job is None or again:
            job = queue_beside().submit(key, partial(self._compute, run, setting, top))
        return job

    def _key(self, run: Run, setting: Setting, top: int) -> str:
        return f"evidence:{self._opened}:{self._attributor.folder.study.name}:{run.key}:{setting.text}:{top}"

    def _compute(self, run: Run, setting: Setting, top: int, job: Job) -> Evidence:
        job.progress(0, 2)
        null: Null | None
        if run.region is None:
            try:
                null, reason = self.null(setting), ""
            except DtrakError as error:  # not defined for this method, or its features are still being computed
                null, reason = None, error.message
        else:
            null, reason = None, "It compares whole images; this ranking is about a part of one."
        job.progress(1, 2)
        features, query = self._features(run, [setting]), self._query(run)
        assert features is not None

        def verdict() -> Verdict | None:
            return None if null is None else null.judge(self._attributor.scores(setting, query, features)[0])

        def stable() -> Stability | None:
            try:
                return stability(self._attributor, setting, query, features, top)
            except DtrakError:  # not defined for this method
                return None

        key = (run.key, setting.text)
        judged = self._cache.of((*key, null is None), verdict)  # the null may still be computed
        return Evidence(null, judged, self._cache.of((*key, top, "stable"), stable), reason)

    def null(self, setting: Setting) -> Null:
        """The null distribution of a setting.

        Raises:
            DtrakError: the method has no significance test, or features are not built.
        """
        found: Null = self._cache.of(setting.text, lambda: null_of(self._attributor, setting))
        return found

    def _is_large(self, setting: Setting) -> bool:
        if not METHODS[setting.method].uses_features:
            return False
        return self._attributor.table.train_size * self._attributor.sides(setting)[0].dim > MANY_NUMBERS
