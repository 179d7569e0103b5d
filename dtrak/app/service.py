"""The service that pages query: an opened study with its runs, rankings and jobs; opened once per server process."""

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8

from dtrak.analysis.comparison import Ranked, ranks
from dtrak.analysis.evidence import near_duplicates
from dtrak.analysis.map import Kind, Map, map_of
from dtrak.analysis.significance import standardise
from dtrak.app.evaluate import Reliability, reliability
from dtrak.app.evidence import EvidenceJobs
from dtrak.app.jobs import Job, queue
from dtrak.app.retraining import RetrainingJobs
from dtrak.app.runs import Run, RunStore
from dtrak.build.costs import COSTS_FILE
from dtrak.config import load_study
from dtrak.evaluation.counterfactual import Counterfactuals, load_counterfactuals
from dtrak.evaluation.lds import Score
from dtrak.evaluation.measure import judges, score_now
from dtrak.evaluation.results import Evaluation, load_evaluation
from dtrak.methods.attributor import Attributor, Features
from dtrak.methods.base import Need
from dtrak.methods.query import Query, QuerySet
from dtrak.methods.ranking import Ranking
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting
from dtrak.methods.subsets import SubsetTruth
from dtrak.models.generation import GenerationSettings
from dtrak.models.sampling import merged_for, sample
from dtrak.study.folder import StudyFolder, trained_model_config, truth_folders
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import digest
from dtrak.utils.latest import Latest

ANSWERS_KEPT, ANSWERS_OF_STUDY_KEPT = 64, 8
DUPLICATES_LIMIT = 5_000
LISTED = 1000  # ranks that are compared where a pass over all images takes long
REVERSE_RUNS = 50
TRUTH_PARTS = ("evaluation.json", "counterfactual.json")
T = TypeVar("T")
Scores = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Lane:
    """One ranking in a comparison.

    Attributes:
        measured: its measured LDS, in words.
    """

    title: str
    ranking: Ranking
    measured: str = ""

    @functools.cached_property
    def known(self) -> Ranked:
        """What is compared."""
        return Ranked.found(self.ranking)


class StudyService:
    """One study, opened; slow operations become jobs."""

    def __init__(self, study: str):
        self.folder = StudyFolder(load_study(study))
        self.attributor = Attributor(self.folder)
        self.runs = RunStore(self.folder.runs)
        self.lock = threading.RLock()
        self._answers = Latest[Any](ANSWERS_KEPT)
        self._answers_of_study = Latest[Any](ANSWERS_OF_STUDY_KEPT)
        self._judges: tuple[SubsetTruth, QuerySet] | None = None

    @functools.cached_property
    def model_fingerprint(self) -> str:
        """Fingerprint of the model; the first call loads it, which takes about a second."""
        with self.lock:
            return self.attributor.model.fingerprint()

    @property
    def classes(self) -> list[str]:
        """Classes that can be generated, or example prompts."""
        with self.lock:
            return self.attributor.model.names

    @property
    def takes_text(self) -> bool:
        """Whether the model is conditioned on a prompt."""
        return self.attributor.model.takes_text

    @property
    def has_adapter(self) -> bool:
        """Whether the model has an adapter, whose scale can be set."""
        return bool(trained_model_config(self.folder).adapter)

    def find(self, settings: list[GenerationSettings]) -> list[Run] | None:
        """The runs of these settings, or None unless all of them exist."""
        runs = [self.runs.load(self.runs.generated_id(self.model_fingerprint, s)) for s in settings]
        return [run for run in runs if run] if all(runs) else None

    def generate(self, settings: list[GenerationSettings]) -> Job:
        """Queue the generation of several images that differ in their seeds only."""
        fingerprint = self.model_fingerprint
        self.attributor.model.conditioner.check_name(settings[0].label)

        def work(job: Job) -> list[str]:
            model = self.attributor.model
            with merged_for(model, settings[0]):
                for step in sample(model, settings):
                    shown = step.done % model.codec.preview_every == 0
                    job.progress(step.done, step.total, model.decode(step.x0) if shown else None)
            pixels = model.decode(step.x)
            return [
                self.runs.save_generated(fingerprint, s, image).id for s, image in zip(settings, pixels, strict=True)
            ]

        return queue().submit("generate:" + digest([self.folder.study.name, [s.as_dict() for s in settings]]), work)

    def path(self, run: Run, times: Sequence[int], again: bool = False) -> Job:
        """The job that generates a run again; its result is the images predicted nearest to some timesteps.

        Args:
            again: start anew after a job that failed or was cancelled.
        """
        key = f"path:{self.folder.study.name}:{run.id}:{digest(list(times))}"
        if (known := queue().get(key)) is not None and not again:
            return known

        def work(job: Job) -> UInt8[np.ndarray, "times r r 3"]:
            model, query = self.attributor.model, self.query(run)
            assert query.settings is not None
            steps = []
            with merged_for(model, query.settings):
                for step in sample(model, [query.settings]):
                    job.progress(step.done, step.total)
                    steps.append(step)
            level = model.process.level
            seen, wanted = (level(torch.tensor(t)) for t in ([s.timestep for s in steps], list(times)))
            nearest = (wanted[:, None] - seen[None]).abs().argmin(1).tolist()
            return model.decode(torch.cat([steps[i].x0 for i in nearest]))

        return queue().submit(key, work)

    def features(self, run: Run, settings: Sequence[Setting]) -> Features | None:
        """The run's features for some settings, or None unless all of them are computed.

        Raises:
            DtrakError: a setting needs something that the study or the run lacks.
        """
        needs = self._needs(run, settings)
        found = self.runs.features(run, needs)
        return found if len(found) == len(needs) else None

    def compute_features(self, run: Run, settings: Sequence[Setting]) -> Job:
        """Queue the computation of the features that a run lacks for some settings."""
        needs = self._needs(run, settings)
        saved = self.runs.features(run, needs)
        missing = [need for need in needs if need.key not in saved]

        def work(job: Job) -> None:
            groups: dict[tuple[str, bool], list[Need]] = {}
            for need in missing:
                groups.setdefault((need.config.model, need.make is not None), []).append(need)
            for done, group in enumerate(groups.values()):
                job.progress(done, len(groups))
                for key, feature in self.attributor.compute(self.query(run), group).items():
                    self.runs.save_feature(run, key, feature)

        return queue().submit(self.features_key(run, settings), work)

    def features_key(self, run: Run, settings: Sequence[Setting]) -> str:
        """The key of the job of :meth:`compute_features`."""
        needed = sorted(need.key for need in self._needs(run, settings))
        return f"features:{self.folder.study.name}:{run.key}:{digest(needed)}"

    def query(self, run: Run) -> Query:
        """The run as a query; an image generated with other weights counts as uploaded."""
        settings = run.settings if run.model == self.model_fingerprint else None
        return Query(run.pixels, run.label, settings, run.region)

    def attribute(self, run: Run, setting: Setting, top: int) -> Ranking | None:
        """The ranking, or None while the run's features are not computed."""
        return self.ask(run, setting, ranking, top)

    def ask(self, run: Run, setting: Setting, question: Callable[..., T], *more: Any) -> T | None:
        """``question(attributor, setting, query, features, *more)``, or None while the run's features are not computed.

        The latest results are kept.
        """
        key = (run.key, setting.text, question, *more)
        with self.lock:
            features = self.features(run, [setting]) if key not in self._answers else {}
            if features is None:
                return None
            return self._answers.of(key, lambda: question(self.attributor, setting, self.query(run), features, *more))

    def answer(self, run: Run, setting: Setting, question: Callable[..., T], *more: Any) -> T:
        """:meth:`ask`, for a run whose features are computed.

        Raises:
            DtrakError: they are not, or something else is missing.
        """
        found = self.ask(run, setting, question, *more)
        if found is None:
            raise DtrakError("The features of this image are not computed.", hint="Reload the page.")
        return found

    def answer_of_study(self, setting: Setting, question: Callable[[Attributor, Setting], T]) -> T:
        """``question(attributor, setting)``, kept like the answers about images."""
        with self.lock:
            return self._answers_of_study.of((setting.text, question), lambda: question(self.attributor, setting))

    def map(self, kind: Kind) -> Map:
        """The map of the training images; the first call computes it."""
        with self.lock:
            return self._answers_of_study.of(kind, lambda: map_of(self.attributor, kind))

    def lane(self, run: Run, setting: Setting, title: str, measured: str = "") -> Lane:
        """The ranking of a run whose features are computed."""
        return Lane(title, self.answer(run, setting, ranking, LISTED), measured)

    @functools.cached_property
    def evidence(self) -> EvidenceJobs:
        """The evidence for rankings."""
        return EvidenceJobs(self.attributor, self.lock, self.features, self.query)

    @functools.cached_property
    def duplicates(self) -> Int[np.ndarray, " n"] | None:
        """Near-duplicate group of each training image; None where there are too many to compare all pairs."""
        table = self.attributor.table
        if table.train_size > DUPLICATES_LIMIT:
            return None
        return near_duplicates(np.asarray(table.pixels[: table.train_size]))

    @functools.cached_property
    def evaluation(self) -> Evaluation | None:
        """The measured LDS of the study's methods, or None."""
        with self.lock:
            return load_evaluation(self.folder)

    @functools.cached_property
    def counterfactuals(self) -> Counterfactuals | None:
        """The measured counterfactuals, or None."""
        with self.lock:
            return load_counterfactuals(self.folder)

    def reliability(self, setting: Setting, run: Run) -> Reliability:
        """The measured reliability of a setting for a run."""
        return reliability(self.evaluation, setting, run.settings is not None)

    def lds_now(self, setting: Setting, queries: str) -> Score | None:
        """The LDS of any setting at its own λ, or None where the ground truth or its features are not built.

        Args:
            queries: "held-out" or "generated".
        """
        key = ("", setting.text, score_now, queries)
        with self.lock:
            try:
                known = self._judges = self._judges or judges(self.attributor)
                return self._answers.of(key, lambda: score_now(self.attributor, setting, queries, known))
            except DtrakError:
                return None

    @functools.cached_property
    def retraining(self) -> RetrainingJobs:
        """Retrainings without some images, and exact influence."""
        return RetrainingJobs(self.folder, self.attributor.table, self.query)

    def saved_scores(self, setting: Setting) -> list[tuple[Run, Scores]]:
        """The latest images of the present model that the setting can score and has features of, with their scores.

        Raises:
            DtrakError: the study lacks what the method needs.
        """
        METHODS[setting.method].require(self.attributor)
        found = []
        for run in self.runs.latest(REVERSE_RUNS):
            if run.settings is None or run.model != self.model_fingerprint:
                continue
            with contextlib.suppress(DtrakError):  # such as scores that were imported for other images
                if (answer := self.ask(run, setting, all_scores)) is not None:
                    found.append((run, answer[0]))
        return found

    def reverse(self, sample_id: str, setting: Setting, count: int = 8) -> list[tuple[Run, float, int]]:
        """The generated images that a training image influences most: the run, its z-score there, its rank from 1."""
        row = self.attributor.table.rows[sample_id]
        found = [
            (run, float(standardise(scores)[row]), int(ranks(scores)[row]) + 1)
            for run, scores in self.saved_scores(setting)
        ]
        return sorted(found, key=lambda item: -item[1])[:count]

    def _needs(self, run: Run, settings: Sequence[Setting]) -> list[Need]:
        needs = [need for setting in settings for need in self.attributor.needs(setting, self.query(run))]
        return list({need.key: need for need in needs}.values())


def all_scores(
    attributor: Attributor, setting: Setting, query: Query, features: Features
) -> tuple[Scores, float | None]:
    """The scores of all training images and the λ used; a question for :meth:`StudyService.ask`."""
    return attributor.scores(setting, query, features)


def ranking(attributor: Attributor, setting: Setting, query: Query, features: Features, top: int) -> Ranking:
    """The ranking of the training images; a question for :meth:`StudyService.ask`.

    Where that is quick, all scores are computed at once: the histogram shows them, and other threads wait meanwhile.
    """
    found = attributor.attribute(query, features, setting, top)
    if not found.large:
        _ = found.scores
    return found


@functools.lru_cache(maxsize=2)
def _open(study: str, stamp: tuple[str, ...]) -> StudyService:
    return StudyService(study)


def study_service(study: str) -> StudyService:
    """The opened study; reopened after it was rebuilt.

    Raises:
        DtrakError: its data, model or index is missing.
    """
    folder = StudyFolder(load_study(study))
    built = [
        *folder.index.glob("*/manifest.json"),
        folder.root / COSTS_FILE,
        folder.data / "report.json",
        *(folder.root / "imported").glob("*"),
        folder.model_dir / "training.json",
        *(root / name for root in truth_folders(folder) for name in TRUTH_PARTS),
    ]
    stamp = tuple(f"{path}:{path.stat().st_mtime_ns}" for path in sorted(built) if path.exists())
    if not any(Path(s.rsplit(":", 1)[0]).name == "manifest.json" for s in stamp):
        raise DtrakError(f"The index of study '{study}' is not built.", hint=f"python -m index_builder build {study}")
    return _open(study, stamp)
