"""The example on the home page: a ranking computed when the study is built, and read from disk.

Reading must be quick, so what only writing needs is imported inside :func:`write_example`.
"""

from dataclasses import dataclass
from typing import Any

from dtrak.config import LAST, load_study
from dtrak.study.folder import StudyFolder
from dtrak.utils.files import read_json, write_bytes, write_json
from dtrak.utils.images import enlarged_png

EXAMPLE_SEED = 6  # in the demo study, a recognisable flag
SHOWN, KEPT = 5, 4  # tiles of the example, and images that are kept as runs


@dataclass(frozen=True)
class Example:
    """A generated image and its strongest proponents, ready to show without a model.

    Attributes:
        image: PNG.
        seed: that it was generated from.
        method: title of the attribution method.
        tiles: as :func:`dtrak.app.views.tiles` gives them.
    """

    image: bytes
    seed: int
    method: str
    tiles: list[dict[str, Any]]


def write_example(folder: StudyFolder, device: str = "cpu") -> None:
    """Generate a few images, so that no page is empty, and save the ranking of the first beside the index."""
    from dtrak.app.runs import RunStore
    from dtrak.app.views import tiles
    from dtrak.methods.attributor import Attributor
    from dtrak.methods.queries import generate_query
    from dtrak.methods.settings import Setting
    from dtrak.models.sampling import GenerationSettings

    attributor, runs = Attributor(folder, device), RunStore(folder.runs)
    names = list[str | None](attributor.model.names[:KEPT]) or [None]
    model = attributor.model_fingerprint(LAST)
    for number in reversed(range(KEPT)):  # the first one is the newest: pages open on it
        label = names[number % len(names)]
        settings = GenerationSettings(EXAMPLE_SEED + number // len(names), 50, label, folder.study.guidance)
        query = generate_query(attributor, settings)
        runs.save_generated(model, settings, query.pixels)
    setting = Setting(attributor.methods()[0].name)
    answer = attributor.attribute(query, attributor.features(query, [setting]), setting, top=SHOWN)
    write_bytes(folder.index / "example.png", enlarged_png(query.pixels, 256))
    content = {"seed": EXAMPLE_SEED, "method": answer.method.title, "tiles": tiles(answer.proponents, attributor.table)}
    write_json(folder.index / "example.json", content)


def example_is_current(folder: StudyFolder) -> bool:
    """Whether the example is newer than every index."""
    path = folder.index / "example.json"
    indexes = [p.stat().st_mtime_ns for p in folder.index.glob("*/manifest.json")]
    return path.exists() and path.stat().st_mtime_ns >= max(indexes, default=0)


def home_example(study: str) -> Example | None:
    """The example of a study, or None before it is built."""
    folder = StudyFolder(load_study(study)).index
    if not (folder / "example.json").exists():
        return None
    content = read_json(folder / "example.json")
    return Example((folder / "example.png").read_bytes(), content["seed"], content["method"], content["tiles"])
