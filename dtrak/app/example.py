"""The example on the home page: computed when the study is built, and read from disk.

Reading must be quick, so what only writing needs is imported inside :func:`write_example`.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtrak.config import LAST, ExampleConfig, Study, load_study
from dtrak.study.folder import StudyFolder, truth_folders
from dtrak.utils.files import digest, read_json, write_bytes, write_json
from dtrak.utils.images import enlarged_png

if TYPE_CHECKING:
    from dtrak.app.runs import Run
    from dtrak.methods.attributor import Attributor
    from dtrak.methods.base import Features
    from dtrak.methods.query import Query
    from dtrak.methods.settings import Setting
    from dtrak.models.generation import GenerationSettings

FILE, SHIPPED = "example.json", "example"  # the latter beside the truth that ships with a study
SHOWN, KEPT = 6, 4  # tiles of the example, and images that are kept as runs where the study names none
VERSION = 3  # of the file
EXACT = (
    "**Exact influence.** The picture's loss was differentiated through the whole training: it says what a little more "
    "or less of an image would have changed in this training, with its seed."
)


@dataclass(frozen=True)
class Removed:
    """The picture after a retraining without some images: paths of PNG files."""

    count: int
    sources: Path
    random: Path


@dataclass(frozen=True)
class Example:
    """A generated image and its strongest proponents, ready to show without a model.

    Attributes:
        image: PNG.
        run: id of the run.
        title: its seed and label.
        method: title of the attribution method.
        tiles: as :func:`dtrak.app.views.tiles` gives them.
        verdict: the outcome of the significance test; empty while it is not computed.
        reliability: the method's measured reliability.
        series: the image after removals, if they were measured.
        ready: whether the study is built here, so that the image can be opened on other pages.
    """

    image: bytes
    run: str
    title: str
    method: str
    tiles: list[dict[str, Any]]
    verdict: str
    reliability: str
    series: tuple[Removed, ...]
    ready: bool


def examples_of(study: Study, names: list[str]) -> list[ExampleConfig]:
    """The examples that a study names, or else a few seeds of its first labels or prompts.

    Args:
        names: labels or prompts that the model offers.
    """
    labels: list[str | None] = list(names[:KEPT]) or [None]
    made = [ExampleConfig(seed=number // len(labels), label=labels[number % len(labels)]) for number in range(KEPT)]
    return list(study.examples) or made


def first_example(attributor: "Attributor") -> "tuple[Query, Setting]":
    """The picture on Home and the setting that ranks its sources."""
    (run,) = _kept(attributor, 1)
    return _query(run), _setting(attributor)


def write_example(folder: StudyFolder, device: str = "cpu") -> None:
    """Draw the examples, so that no page is empty, and save the ranking of the first beside the index."""
    from dtrak.analysis.significance import null_of
    from dtrak.app.evaluate import reliability
    from dtrak.app.views import significance, tiles
    from dtrak.evaluation.results import load_evaluation
    from dtrak.evaluation.series import load_series
    from dtrak.methods.attributor import Attributor
    from dtrak.methods.exact import knows_exactly
    from dtrak.methods.settings import Setting
    from dtrak.utils.errors import DtrakError

    attributor = Attributor(folder, device)
    run = _kept(attributor)[0]
    assert run.settings is not None
    query = _query(run)
    exact = knows_exactly(folder, query)
    setting = Setting("exact") if exact else _setting(attributor)
    answer = attributor.attribute(query, {} if exact else _features(attributor, run), setting, top=SHOWN)
    try:
        verdict = EXACT if exact else significance(null_of(attributor, setting).judge(answer.scores))
    except DtrakError as reason:  # its features are computed after the index
        verdict = "" if folder.study.features else f"No significance test: {reason.message}"
    series = []
    if found := load_series(folder, run.settings):
        pictures, without, removed_by = found
        for step in without if removed_by == setting.text else ():
            names = [f"example-{step.removed}-{kind}.png" for kind in ("sources", "random")]
            for name, source in zip(names, (step.sources, step.random), strict=True):
                write_bytes(folder.index / name, (pictures / source).read_bytes())
            series.append({"count": step.removed, "sources": names[0], "random": names[1]})
    write_bytes(folder.index / "example.png", enlarged_png(run.pixels, 256))
    content = {
        "version": VERSION, "depends": _depends(folder), "run": run.id, "title": run.title,
        "method": answer.method.title,
        "tiles": tiles(answer.proponents, attributor.table), "verdict": verdict,
        "reliability": reliability(load_evaluation(folder), setting, True).text, "series": series,
    }  # fmt: skip
    write_json(folder.index / FILE, content)


def save_example_features(folder: StudyFolder, device: str = "cpu") -> None:
    """Save the features of all examples that lack them, so that Attribution opens on any of them at once."""
    from dtrak.methods.attributor import Attributor

    attributor = Attributor(folder, device)
    for run in _kept(attributor):
        _features(attributor, run)


def _kept(attributor: "Attributor", count: int | None = None) -> "list[Run]":
    """The runs of the examples, or of the first ``count``; those that are missing are drawn and saved.

    Those that are evaluation queries take the pixels that are stored: drawn again, on another machine or in a batch of
    another size, they could differ in a bit, and what is known of a query would not be found.
    """
    from dtrak.app.runs import RunStore
    from dtrak.models.generation import GenerationSettings
    from dtrak.models.sampling import generate_all

    study, runs = attributor.folder.study, RunStore(attributor.folder.runs)
    fingerprint = attributor.model_fingerprint(LAST)
    wanted = [
        GenerationSettings(one.seed, one.steps, one.label, study.guidance)
        for one in examples_of(study, attributor.model.names)[:count]
    ]
    found = {one: runs.load(runs.generated_id(fingerprint, one)) for one in wanted}
    if missing := [one for one in wanted if found[one] is None]:
        drawn = _evaluated(attributor.folder)
        for steps in {one.steps for one in missing}:
            alike = [one for one in missing if one.steps == steps and one not in drawn]
            drawn |= dict(zip(alike, generate_all(attributor.model, alike), strict=True))
        for one in reversed(missing):  # the first one is the newest: pages open on it
            found[one] = runs.save_generated(fingerprint, one, drawn[one])
    return [run for run in found.values() if run is not None]


def _evaluated(folder: StudyFolder) -> "dict[GenerationSettings, Any]":
    """The pixels of the evaluation's generated images; none before the study was retrained."""
    from dtrak.methods.query import load_query_set
    from dtrak.utils.errors import DtrakError

    with contextlib.suppress(DtrakError):
        return {query.settings: query.pixels for query in load_query_set(folder).queries if query.settings}
    return {}


def _setting(attributor: "Attributor") -> "Setting":
    from dtrak.methods.settings import Setting

    return Setting(attributor.methods()[0].name)


def _query(run: "Run") -> "Query":
    from dtrak.methods.query import Query

    return Query(run.pixels, run.label, run.settings)


def _features(attributor: "Attributor", run: "Run") -> "Features":
    """The run's features for :func:`_setting`; what is not saved is computed and saved."""
    from dtrak.app.runs import RunStore

    runs, query = RunStore(attributor.folder.runs), _query(run)
    needs = attributor.needs(_setting(attributor), query)
    saved = runs.features(run, needs)
    made = attributor.compute(query, [need for need in needs if need.key not in saved])
    for key, feature in made.items():
        runs.save_feature(run, key, feature)
    return {**saved, **made}


def example_is_current(folder: StudyFolder) -> bool:
    """Whether the example was written from the present indexes, truth and configuration."""
    path = folder.index / FILE
    return path.exists() and read_json(path).get("depends") == _depends(folder)


def _depends(folder: StudyFolder) -> str:
    """A digest of what the example is made from, by the times of files."""
    files = [*folder.index.glob("*/manifest.json"), *folder.features.glob("*/manifest.json")]
    files += folder.root.glob("exact/*/*.npy")
    files += [root / name for root in truth_folders(folder) for name in ("evaluation.json", "removals.json")]
    told = [example.model_dump(mode="json") for example in folder.study.examples]
    return digest(
        [VERSION, told, folder.study.guidance, *sorted([str(f), f.stat().st_mtime_ns] for f in files if f.exists())]
    )


def home_example(study: str) -> Example | None:
    """The example of a study: built here, or else shipped with it; None if there is neither."""
    folder = StudyFolder(load_study(study))
    shipped = [folder.study.resolve(folder.study.truth.path) / SHIPPED] if folder.study.truth.path else []
    for place in (folder.index, *shipped):
        content = read_json(place / FILE) if (place / FILE).exists() else {}
        if content.pop("version", None) == VERSION:
            content.pop("depends")
            series = tuple(
                Removed(r["count"], place / r["sources"], place / r["random"]) for r in content.pop("series")
            )
            return Example((place / "example.png").read_bytes(), series=series, ready=place == folder.index, **content)
    return None
