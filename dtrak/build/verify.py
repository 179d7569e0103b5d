"""Verifying the files of a study: every hash, shard and completion mark."""

import contextlib
import os
import shutil

from dtrak.config import LAST, Split
from dtrak.data.table import discard_data, verify_data
from dtrak.gradients.extractor import identity
from dtrak.index.store import FeatureStore, index_is_built
from dtrak.methods.query import data_fingerprint
from dtrak.models.loading import load_study_model
from dtrak.study.folder import StudyFolder
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import digest, exclusive, read_json, sha256_file

LISTED: tuple[Split, ...] = ("train", "unrelated")


def verify_study(folder: StudyFolder, repair: bool = False) -> list[str]:
    """List the problems of a study's data, features and indexes; empty if it is intact.

    Args:
        repair: remove damaged parts, so that the next build recomputes them.

    Raises:
        DtrakError: another process works on the study.
    """
    alone = exclusive(folder.root, f"study '{folder.study.name}'")
    with alone if os.access(folder.root, os.W_OK) else contextlib.nullcontext():
        if damaged := verify_data(folder.data):
            if repair:
                discard_data(folder.data)
            return damaged  # features cannot be judged by damaged data
        try:
            models = {LAST: load_study_model(folder).fingerprint()}
            data: dict[Split, str] = {split: data_fingerprint(folder, split) for split in LISTED}
        except DtrakError as error:
            return [str(error)]
        problems = []
        with contextlib.suppress(DtrakError):
            data["truth"] = data_fingerprint(folder, "truth")
        for config in (c for split in data for c in folder.study.sets_of(split)):
            if config.model not in models:
                models[config.model] = load_study_model(folder, variant=config.model).fingerprint()
            wanted, indexed = (
                identity(models[config.model], data[config.split], config),
                config in folder.study.features,
            )
            if not (folder.features / digest(wanted) / "manifest.json").exists():
                if indexed:
                    problems.append(f"features '{config.output}': not built for the present model and data")
                continue
            try:
                store = FeatureStore.open(folder.features / digest(wanted))
            except DtrakError as error:
                problems.append(f"features '{config.output}': {error.message}")
                if repair:
                    shutil.rmtree(folder.features / digest(wanted))
                continue
            problems += [f"features '{config.output}' ({store.fingerprint}): {p}" for p in store.verify()]
            index_problems = _verify_index(folder, store) if indexed else []
            problems += [f"index '{config.output}' ({store.fingerprint}): {p}" for p in index_problems]
            if repair:
                for shard in store.damaged():
                    store.discard(shard)
                if index_problems:
                    (folder.index / store.fingerprint / "manifest.json").unlink(missing_ok=True)
        return problems


def _verify_index(folder: StudyFolder, store: FeatureStore) -> list[str]:
    path = folder.index / store.fingerprint
    if not index_is_built(path):
        return ["not built"]
    try:
        hashes = read_json(path / "manifest.json")["sha256"]
    except DtrakError as error:
        return [str(error)]
    except (KeyError, TypeError) as error:
        return [f"the manifest is damaged: {error}"]
    return [
        f"{name} is missing or does not match the manifest's hash"
        for name, known in hashes.items()
        if not (path / name).exists() or sha256_file(path / name) != known
    ]
