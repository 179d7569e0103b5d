"""The example on the home page: computed when the study is built, and read from disk.

Reading must be quick, so what only writing needs is imported inside :func:`write_example`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtrak.config import LAST, ExampleConfig, Study, load_study
from dtrak.study.folder import StudyFolder
from dtrak.utils.files import read_json, write_bytes, write_json
from dtrak.utils.images import enlarged_png

if TYPE_CHECKING:
    from dtrak.methods.attributor import Attributor
    from dtrak.methods.query import Query
    from dtrak.methods.settings import Setting

FILE = "example.json"
SHOWN, KEPT = 6, 4  # tiles of the example, and images that are kept as runs where the study names none
VERSION = 2  # of the file


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
    """

    image: bytes
    run: str
    title: str
    method: str
    tiles: list[dict[str, Any]]
    verdict: str
    reliability: str
    series: tuple[Removed, ...]


def examples_of(study: Study, names: list[str]) -> list[ExampleConfig]:
    """The examples that a study names, or else a few seeds of its first labels or prompts.

    Args:
        names: labels or prompts that the model offers.
    """
    labels: list[str | None] = list(names[:KEPT]) or [None]
    made = [ExampleConfig(seed=number // len(labels), label=labels[number % len(labels)]) for number in range(KEPT)]
    return list(study.examples) or made


def first_example(attributor: "Attributor") -> "tuple[Query, Setting]":
    """The picture on Home, generated, and the setting that ranks its sources."""
    from dtrak.methods.queries import generate_query
    from dtrak.methods.settings import Setting
    from dtrak.models.sampling import GenerationSettings

    study = attributor.folder.study
    one = examples_of(study, attributor.model.names)[0]
    settings = GenerationSettings(one.seed, one.steps, one.label, study.guidance)
    return generate_query(attributor, settings), Setting(attributor.methods()[0].name)


def write_example(folder: StudyFolder, device: str = "cpu") -> None:
    """Generate the examples, so that no page is empty, and save the ranking of the first beside the index."""
    from dtrak.analysis.significance import null_of
    from dtrak.app.evaluate import reliability
    from dtrak.app.runs import RunStore
    from dtrak.app.views import significance, tiles
    from dtrak.evaluation.results import load_evaluation
    from dtrak.evaluation.series import load_series
    from dtrak.methods.attributor import Attributor
    from dtrak.models.sampling import GenerationSettings, generate
    from dtrak.utils.errors import DtrakError

    attributor, runs = Attributor(folder, device), RunStore(folder.runs)
    fingerprint = attributor.model_fingerprint(LAST)
    wanted = examples_of(folder.study, attributor.model.names)
    for one in reversed(wanted):  # the first one is the newest: pages open on it
        settings = GenerationSettings(one.seed, one.steps, one.label, folder.study.guidance)
        if runs.load(runs.generated_id(fingerprint, settings)) is None:
            runs.save_generated(fingerprint, settings, generate(attributor.model, [settings])[0])
    query, setting = first_example(attributor)
    assert query.settings is not None
    answer = attributor.attribute(query, attributor.features(query, [setting]), setting, top=SHOWN)
    try:
        verdict = significance(null_of(attributor, setting).judge(answer.scores))
    except DtrakError:  # its features are computed after the index
        verdict = ""
    series = []
    if found := load_series(folder, query.settings):
        pictures, without, _ = found
        for step in without:
            names = [f"example-{step.removed}-{kind}.png" for kind in ("sources", "random")]
            for name, source in zip(names, (step.sources, step.random), strict=True):
                write_bytes(folder.index / name, (pictures / source).read_bytes())
            series.append({"count": step.removed, "sources": names[0], "random": names[1]})
    run = runs.load(runs.generated_id(fingerprint, query.settings))
    assert run is not None
    write_bytes(folder.index / "example.png", enlarged_png(query.pixels, 256))
    content = {
        "version": VERSION, "run": run.id, "title": run.title, "method": answer.method.title,
        "tiles": tiles(answer.proponents, attributor.table), "verdict": verdict,
        "reliability": reliability(load_evaluation(folder), setting, True).text, "series": series,
    }  # fmt: skip
    write_json(folder.index / FILE, content)


def example_is_current(folder: StudyFolder) -> bool:
    """Whether the example is newer than every index, and complete."""
    path = folder.index / FILE
    indexes = [p.stat().st_mtime_ns for p in folder.index.glob("*/manifest.json")]
    if not path.exists() or path.stat().st_mtime_ns < max(indexes, default=0):
        return False
    content = read_json(path)
    return content.get("version") == VERSION and bool(content["verdict"])


def home_example(study: str) -> Example | None:
    """The example of a study, or None before it is built."""
    folder = StudyFolder(load_study(study)).index
    if not (folder / FILE).exists():
        return None
    content = read_json(folder / FILE)
    if content.pop("version", None) != VERSION:
        return None
    series = tuple(Removed(r["count"], folder / r["sources"], folder / r["random"]) for r in content.pop("series"))
    return Example((folder / "example.png").read_bytes(), series=series, **content)
