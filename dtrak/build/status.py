"""The build status of a study and the commands still to run; reads no weights and does not import torch."""

from pathlib import Path

from dtrak.index.store import FeatureStore, index_is_built
from dtrak.study.folder import StudyFolder, needs_training, not_fetched
from dtrak.utils.files import read_note


def study_status(folder: StudyFolder) -> dict[str, str]:
    """The status of each part of a study, in a few words."""
    study = folder.study
    prepared = (folder.data / "report.json").exists()
    stores = [FeatureStore.open(path.parent) for path in sorted(folder.features.glob("*/manifest.json"))]
    indexes = built_indexes(folder)
    report = read_note(folder.data / "report.json") if prepared else {}
    return {
        "name": study.name,
        "title": study.title,
        "data": f"{report['train']} training images, {report['heldout']} held out" if prepared else "not prepared",
        "model": "not trained" if needs_training(folder) else "not downloaded" if not_fetched(study) else "ready",
        "features": _features_status(stores),
        "index": f"{len(indexes)} built" if indexes else "not built",
    }


def built_indexes(folder: StudyFolder) -> list[Path]:
    """The folders of the study's complete indexes."""
    return [path.parent for path in folder.index.glob("*/manifest.json") if index_is_built(path.parent)]


def commands_left(folder: StudyFolder) -> list[str]:
    """The commands still to run before a study is ready for queries."""
    name = folder.study.name
    left = ["prepare"] if not (folder.data / "report.json").exists() or not_fetched(folder.study) else []
    left += ["train"] if needs_training(folder) else []
    left += ["build"] if not built_indexes(folder) else []
    return [f"python -m index_builder {command} {name}" for command in left]


def _features_status(stores: list[FeatureStore]) -> str:
    if not stores:
        return "not built"
    unfinished = [s for s in stores if not s.complete]
    text = f"{len(stores) - len(unfinished)} sets, {sum(s.size for s in stores) / 1e6:.0f} MB"
    parts = [f"{s.identity['output']} {len(s.shards) - len(s.missing())}/{len(s.shards)} shards" for s in unfinished]
    return text + (f"; unfinished: {', '.join(parts)}" if parts else "")
