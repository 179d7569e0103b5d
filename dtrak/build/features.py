"""Building feature stores on an engine, one shard at a time.

Each worker loads the model once. Tasks use a fixed number of threads, so a shard's bytes do not depend on the
number of workers. Shards are complete or absent; an interrupted build resumes.
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dtrak.build.costs import INDEX_PART
from dtrak.config import LAST, FeatureConfig, Split, Study
from dtrak.data import Table
from dtrak.execution.engines import Engine, Local
from dtrak.execution.share import Share
from dtrak.gradients.extractor import FeatureExtractor, extract_rows, identity
from dtrak.index.faiss_index import build_index
from dtrak.index.store import FeatureStore
from dtrak.methods.query import data_fingerprint, split_rows
from dtrak.models.base import DiffusionModel
from dtrak.models.loading import load_study_model
from dtrak.study.folder import StudyFolder
from dtrak.utils.files import digest, exclusive, remove_leftovers

SHARD_SIZE = 16
MOST_SHARDS = 4096


@dataclass(frozen=True)
class Task:
    """One job: a shard of some feature sets of the same rows and the same model.

    Attributes:
        part: title of the part of the build.
        shard: number of the shard.
        sets: the feature sets in which the shard is missing.
        beside: all feature sets of the part for these rows and this model.
    """

    part: str
    shard: int
    sets: tuple[FeatureConfig, ...]
    beside: tuple[FeatureConfig, ...]


@dataclass(frozen=True)
class Built:
    """The stores of one part of a build.

    Attributes:
        seconds: wall time until its results arrived.
    """

    stores: list[FeatureStore]
    seconds: float


def build_features(
    folder: StudyFolder,
    engine: Engine = Local(),
    batch_size: int = 16,
    device: str = "cpu",
    report: Callable[[str, int, int], None] = lambda part, done, total: None,
    sets: Sequence[FeatureConfig] | None = None,
) -> list[FeatureStore]:
    """Compute the missing shards of some feature sets, by default those of the study's index.

    Raises:
        DtrakError: another process works on the study, the model is missing, or a feature is not finite.
    """
    sets = folder.study.features if sets is None else sets
    return build_parts(folder, {INDEX_PART: sets}, engine, batch_size, device, report)[INDEX_PART].stores


def build_parts(
    folder: StudyFolder,
    parts: Mapping[str, Sequence[FeatureConfig]],
    engine: Engine,
    batch_size: int = 16,
    device: str = "cpu",
    report: Callable[[str, int, int], None] = lambda part, done, total: None,
    share: Share | None = None,
) -> dict[str, Built]:
    """Compute the missing shards of several parts, one part after the other, with the same workers.

    Args:
        parts: feature sets by the title of their part.
        batch_size: (timestep, draw) pairs per forward pass.
        report: called with (current part, shards done, total shards).
        share: compute only these shards; several processes may then work on the study at once.

    Raises:
        DtrakError: another process works on the study, the model is missing, or a feature is not finite.
    """
    alone = exclusive(folder.root, f"study '{folder.study.name}'") if share is None else contextlib.nullcontext()
    with alone:
        remove_leftovers(folder.root)
        stores = {title: open_stores(folder, sets) for title, sets in parts.items()}
        tasks = [task for title, sets in parts.items() for task in _missing(title, sets, stores[title])]
        tasks = [task for task in tasks if share is None or share.has(task.shard)]
        total = sum(len(store.shards) for group in stores.values() for store in group)
        done = total - sum(len(task.sets) for task in tasks)
        seconds = dict.fromkeys(parts, 0.0)
        report(next(iter(parts)), done, total)
        before = time.monotonic()
        with contextlib.closing(engine.results(_builder, (folder.study, batch_size, device), tasks)) as results:
            for task in results:
                now = time.monotonic()
                seconds[task.part] += now - before
                before, done = now, done + len(task.sets)
                report(task.part, done, total)
        return {title: Built(stores[title], seconds[title]) for title in parts}


def build_indexes(folder: StudyFolder, stores: list[FeatureStore]) -> None:
    """Build the FAISS index and kernel of each complete store.

    Raises:
        DtrakError: a store is incomplete, or FAISS cannot build the study's ``index_factory``.
    """
    with exclusive(folder.root, f"study '{folder.study.name}'"):
        for store in stores:
            build_index(store, folder.index, folder.study.index_factory)


def open_stores(folder: StudyFolder, sets: Sequence[FeatureConfig]) -> list[FeatureStore]:
    """The stores of feature sets for the study's present models and data, created if new."""
    rows = {split: len(split_rows(folder, split)[1]) for split in {c.split for c in sets}}
    return [
        FeatureStore.create(folder.features, content, rows[c.split], shard_size(rows[c.split]))
        for c, content in zip(sets, _identities(folder, sets), strict=True)
    ]


def shard_size(rows: int) -> int:
    """Rows per shard: few, so that an interruption loses little, but at most ``MOST_SHARDS`` shards."""
    return max(SHARD_SIZE, -(-rows // MOST_SHARDS))


def _identities(folder: StudyFolder, sets: Sequence[FeatureConfig]) -> list[dict[str, Any]]:
    models = {name: load_study_model(folder, variant=name).fingerprint() for name in {c.model for c in sets}}
    data = {split: data_fingerprint(folder, split) for split in {c.split for c in sets}}
    return [identity(models[c.model], data[c.split], c) for c in sets]


def ablation_parts(sets: Sequence[FeatureConfig]) -> dict[str, list[FeatureConfig]]:
    """Feature sets grouped by what one pass over the images computes, each group with a title."""
    parts: dict[str, list[FeatureConfig]] = {}
    for config in sets:
        draws = f", draw {config.first_draw + 1}" if config.first_draw else ""
        if config.noise_draws > 1:
            draws = f", draws {config.first_draw + 1} to {config.first_draw + config.noise_draws}"
        spread = "first " if config.strategy == "cumulative" else ""
        names = {"train": "", "truth": "evaluation queries, ", "unrelated": "unrelated images, "}
        alone = config.split == "unrelated" and config.model == LAST
        where = names[config.split] + ("" if alone else config.model)
        where = where.removesuffix(", ")
        parts.setdefault(f"{where}, {spread}{config.timesteps} timesteps{draws}", []).append(config)
    return parts


def evaluation_sets(folder: StudyFolder) -> list[FeatureConfig]:
    """The feature sets that an evaluation adds: the controls, and each built set on the evaluation queries."""
    study = folder.study
    listed = list(study.feature_sets)
    paths = [folder.features / digest(content) for content in _identities(folder, listed)]
    stores = {c: FeatureStore.open(p) for c, p in zip(listed, paths, strict=True) if (p / "manifest.json").exists()}
    built = {config for config, store in stores.items() if store.complete} | set(study.control_sets)
    of_queries = [c for c in study.sets_of("truth") if c.model_copy(update={"split": "train"}) in built]
    return [*study.control_sets, *of_queries]


def _missing(part: str, sets: Sequence[FeatureConfig], stores: list[FeatureStore]) -> list[Task]:
    lacking: dict[tuple[str, str, int, int], list[FeatureConfig]] = {}
    for config, store in zip(sets, stores, strict=True):
        for shard in store.missing():
            lacking.setdefault((config.model, config.split, store.shard_size, shard), []).append(config)
    return [
        Task(part, shard, tuple(configs), tuple(c for c in sets if (c.model, c.split) == (model, split)))
        for (model, split, _, shard), configs in lacking.items()
    ]


class _Builder:
    """State of a worker: the opened study, and an extractor for each combination of feature sets."""

    def __init__(self, study: Study, batch_size: int, device: str):
        self._folder, self._batch_size, self._device = StudyFolder(study), batch_size, device
        self._models: dict[str, tuple[DiffusionModel, str]] = {}
        self._splits: dict[Split, tuple[Table, range]] = {}
        self._opened: dict[tuple[FeatureConfig, ...], tuple[FeatureExtractor, list[FeatureStore]]] = {}

    def build(self, task: Task) -> Task:
        if task.sets not in self._opened:
            model, fingerprint = self._model(task.sets[0].model)
            data = data_fingerprint(self._folder, task.sets[0].split)
            folders = [self._folder.features / digest(identity(fingerprint, data, c)) for c in task.sets]
            extractor = FeatureExtractor(model, task.sets, self._batch_size, beside=task.beside)
            self._opened[task.sets] = extractor, [FeatureStore.open(path) for path in folders]
        extractor, stores = self._opened[task.sets]
        table, of_split = self._rows(task.sets[0].split)
        rows = stores[0].shard_rows(task.shard)
        features = extract_rows(extractor, table, of_split[rows.start : rows.stop])
        for store, feature in zip(stores, features, strict=True):
            store.write(task.shard, feature.parts, feature.values)
        return task

    def _rows(self, split: Split) -> tuple[Table, range]:
        if split not in self._splits:
            self._splits[split] = split_rows(self._folder, split)
        return self._splits[split]

    def _model(self, name: str) -> tuple[DiffusionModel, str]:
        if name not in self._models:
            model = load_study_model(self._folder, self._device, name)
            self._models[name] = model, model.fingerprint()
        return self._models[name]


def _builder(study: Study, batch_size: int, device: str) -> Callable[[Task], Task]:
    return _Builder(study, batch_size, device).build
