"""What stands behind an answer: chance and stability, of a large study worked out beside the page."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from dtrak.analysis.evidence import Null, Stability, null_band, stability
from dtrak.app.jobs import Job, queue_beside
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting
from dtrak.utils.errors import DtrakError
from dtrak.utils.latest import Latest

if TYPE_CHECKING:
    from dtrak.app.runs import Run
    from dtrak.app.service import StudyService

LARGE = 2**26  # numbers in Φ, beyond which a page does not wait for what stands behind an answer
KEPT = 64


@dataclass(frozen=True)
class Evidence:
    """Chance and stability, as far as the method has them."""

    null: Null | None
    stable: Stability | None


class Behind:
    """The evidence of a study's answers; the latest is kept."""

    def __init__(self, service: StudyService):
        self._service = service
        self._kept = Latest[Any](KEPT)
        self._opened = time.monotonic_ns()  # a job that another opening of the study began is not this one's

    def evidence(self, run: Run, setting: Setting, top: int) -> Evidence | None:
        """What chance gives and how stable an answer is; None where :meth:`job` has yet to work it out.

        Args:
            run: one whose features are computed.
        """
        if not self._is_large(setting):
            with self._service.lock:
                return self._work_out(run, setting, top, Job(""))
        job = queue_beside().get(self._key(run, setting, top))
        return job.result if job is not None and job.state == "done" else None

    def job(self, run: Run, setting: Setting, top: int, again: bool = False) -> Job:
        """The latest job that works out the evidence of a large study, queued if there is none.

        Args:
            again: also if it failed or was cancelled.
        """
        key = self._key(run, setting, top)
        job = queue_beside().get(key)
        if job is None or again:
            job = queue_beside().submit(key, partial(self._work_out, run, setting, top))
        return job

    def _key(self, run: Run, setting: Setting, top: int) -> str:
        return f"evidence:{self._opened}:{self._service.folder.study.name}:{run.id}:{setting.text}:{top}"

    def _work_out(self, run: Run, setting: Setting, top: int, job: Job) -> Evidence:
        job.progress(0, 2)
        null = self._null(setting)
        job.progress(1, 2)
        features = self._service.features(run, [setting])
        assert features is not None

        def stable() -> Stability | None:
            try:
                return stability(self._service.attributor, setting, self._service.query(run), features, top)
            except DtrakError:  # there is no such thing for this method
                return None

        return Evidence(null, self._kept.of((run.id, setting.text, top), stable))

    def _null(self, setting: Setting) -> Null | None:
        try:
            found = self._kept.of(setting.text, lambda: null_band(self._service.attributor, setting))
        except DtrakError:
            return None
        if not found.heldout and any(config.split == "heldout" for config in self._service.folder.study.feature_sets):
            self._kept.drop(setting.text)  # the held-out images may still be at work
        return found

    def _is_large(self, setting: Setting) -> bool:
        if not METHODS[setting.method].uses_features:
            return False
        return self._service.attributor.table.train_size * self._service.attributor.sides(setting)[0].dim > LARGE
