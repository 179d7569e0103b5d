"""Trainings that pages ask for: what-ifs, and exact influence. They take minutes and run in their own queue."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from dtrak.app.jobs import Job, retraining_queue
from dtrak.app.runs import Run
from dtrak.data import Table
from dtrak.evaluation.exact import exact_influence
from dtrak.evaluation.removal import Removal, Task, draw_all, drawn, is_drawn
from dtrak.evaluation.whatif import random_rows
from dtrak.execution.engines import Local, cores
from dtrak.methods.exact import growth, stored
from dtrak.methods.query import Query
from dtrak.study.folder import StudyFolder
from dtrak.utils.files import digest, exclusive

WHAT_IF_SHARE = 2  # a what-if retrains for the recipe's steps divided by this
Scores = Float[np.ndarray, " n"]


class RetrainingJobs:
    """The trainings of one study and their results.

    Args:
        query: a picture as a query.
    """

    def __init__(self, folder: StudyFolder, table: Table, query: Callable[[Run], Query]):
        self._folder, self._table, self._query = folder, table, query

    def what_if(self, run: Run, removed: Sequence[str]) -> list[Task]:
        """The trainings of a what-if: on all images, without ``removed``, and without as many random others."""
        assert run.settings is not None
        table = self._table
        rows = table.rows.many(removed)
        others = [table.train_ids[row] for row in random_rows(table.train_size, rows, digest(sorted(removed)))]
        steps = max(1, self._folder.study.training.steps // WHAT_IF_SHARE)
        sets: list[Sequence[str]] = [[], removed, others]
        return [Task(Removal.of(self._folder, ids, steps, "fp32"), (run.settings,)) for ids in sets]

    def retrained(self, tasks: Sequence[Task]) -> list[UInt8[np.ndarray, "r r 3"]] | None:
        """The regenerated image of each task, or None unless all of them exist."""
        if not all(is_drawn(self._folder, task.removal, task.settings[0]) for task in tasks):
            return None
        return [drawn(self._folder, task.removal, task.settings)[0] for task in tasks]

    def what_if_key(self, tasks: Sequence[Task]) -> str:
        """The key of the job of :meth:`retrain_without`."""
        return f"what-if:{self._folder.study.name}:{digest([str(task) for task in tasks])}"

    def retrain_without(self, tasks: Sequence[Task]) -> Job:
        """Queue the trainings of :meth:`what_if`, in separate processes."""

        def work(job: Job) -> None:
            with exclusive(self._folder.root / "retrained", f"the retraining of '{self._folder.study.name}'"):
                draw_all(self._folder, tasks, Local(max(2, min(len(tasks), cores()))), job.progress)

        return retraining_queue().submit(self.what_if_key(tasks), work)

    def exact(self, run: Run) -> tuple[Scores, float] | None:
        """The exact influence on a picture and the growth of its adjoint, if it was computed."""
        if run.region is not None:
            return None
        path = stored(self._folder, self._query(run))
        if path is None:
            return None
        return np.load(path).astype(np.float64), growth(path)

    def exact_key(self, run: Run) -> str:
        """The key of the job of :meth:`compute_exact`."""
        return f"exact:{self._folder.study.name}:{run.id}"

    def compute_exact(self, run: Run) -> Job:
        """Queue the computation of the exact influence on a picture."""

        def work(job: Job) -> None:
            exact_influence(self._folder, [self._query(run)], job.progress)

        return retraining_queue().submit(self.exact_key(run), work)
