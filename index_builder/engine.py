"""Building feature stores with worker processes, a shard at a time.

Each worker loads the model once and runs on one thread, so that a shard's bytes do not depend on
how many workers there are. Shards are complete or absent; a build that is killed resumes.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from dtrak.config import Study
from dtrak.errors import DtrakError
from dtrak.features import FeatureExtractor, extract_rows, identity
from dtrak.files import digest, exclusive
from dtrak.index import build_index
from dtrak.store import FeatureStore
from dtrak.studies import StudyFolder, load_study_model

SHARD_SIZE = 16

Task = tuple[int, tuple[int, ...]]  # a shard, and the feature sets that lack it


def build_features(
    folder: StudyFolder,
    workers: int,
    batch_size: int = 16,
    device: str = "cpu",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[FeatureStore]:
    """Compute what is missing of the study's feature sets.

    Args:
        workers: processes; 1 works in this one.
        report: called with (samples done, samples in all).
    """
    with exclusive(folder.root, f"study '{folder.study.name}'"):
        stores = open_stores(folder, device)
        tasks = _missing(stores)
        total = folder.table.train_size
        done = total - sum(len(stores[0].shard_rows(shard)) for shard, _ in tasks)
        report(done, total)
        runner = _in_this_process if workers == 1 or len(tasks) <= 1 else _in_processes
        for shard in runner(folder.study, tasks, workers, batch_size, device):
            done += len(stores[0].shard_rows(shard))
            report(done, total)
        return stores


def build_indexes(folder: StudyFolder, stores: list[FeatureStore]) -> None:
    """Build the FAISS index and kernel of each complete store."""
    with exclusive(folder.root, f"study '{folder.study.name}'"):
        for store in stores:
            build_index(store, folder.index, folder.study.index_factory)


def open_stores(folder: StudyFolder, device: str = "cpu") -> list[FeatureStore]:
    """The stores of the study's feature sets under its present model and data, made if new."""
    model, data = load_study_model(folder, device).fingerprint(), folder.table.fingerprint()
    rows = folder.table.train_size
    identities = [identity(model, data, config) for config in folder.study.features]
    return [FeatureStore.create(folder.features, i, rows, SHARD_SIZE) for i in identities]


def _missing(stores: list[FeatureStore]) -> list[Task]:
    lacking: dict[int, list[int]] = {}
    for i, store in enumerate(stores):
        for shard in store.missing():
            lacking.setdefault(shard, []).append(i)
    return [(shard, tuple(lacking[shard])) for shard in sorted(lacking)]


class _Builder:
    """What a worker holds: the study opened, and an extractor for each combination of feature sets."""

    def __init__(self, study: Study, batch_size: int, device: str):
        self._folder, self._batch_size = StudyFolder(study), batch_size
        self._model = load_study_model(self._folder, device)
        data, fingerprint = self._folder.table.fingerprint(), self._model.fingerprint()
        self._stores = [
            FeatureStore.open(self._folder.features / digest(identity(fingerprint, data, c))) for c in study.features
        ]
        self._extractors: dict[tuple[int, ...], FeatureExtractor] = {}

    def build(self, task: Task) -> int:
        shard, sets = task
        if sets not in self._extractors:
            configs = [self._folder.study.features[i] for i in sets]
            self._extractors[sets] = FeatureExtractor(self._model, configs, self._batch_size)
        features = extract_rows(self._extractors[sets], self._folder.table, self._stores[sets[0]].shard_rows(shard))
        for i, matrix in zip(sets, features, strict=True):
            self._stores[i].write(shard, matrix)
        return shard


def _in_this_process(study: Study, tasks: list[Task], workers: int, batch_size: int, device: str) -> Iterator[int]:
    if tasks:
        builder = _Builder(study, batch_size, device)
        yield from map(builder.build, tasks)


_builder: _Builder | None = None


def _start_worker(study: Study, batch_size: int, device: str) -> None:
    global _builder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    _builder = _Builder(study, batch_size, device)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _build_in_worker(task: Task) -> int:
    assert _builder is not None
    return _builder.build(task)


def _in_processes(study: Study, tasks: list[Task], workers: int, batch_size: int, device: str) -> Iterator[int]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        min(workers, len(tasks)), context, initializer=_start_worker, initargs=(study, batch_size, device)
    )
    try:
        pending = {pool.submit(_build_in_worker, task) for task in tasks}
        while pending:
            finished, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()
    except BrokenProcessPool as error:
        raise DtrakError(
            "A worker process ended without a word (killed, or out of memory?).",
            hint="Run the same command again with fewer --workers or a smaller --batch-size; finished shards are kept.",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
