"""Time and disk space of each part of a build, recorded in the study's ``costs.json``."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from dtrak.index.store import FeatureStore
from dtrak.study.folder import StudyFolder
from dtrak.utils.files import read_note, write_json

COSTS_FILE = "costs.json"
INDEX_PART = "index"


@dataclass(frozen=True)
class Cost:
    """The cost of some feature sets computed together.

    Attributes:
        title: display name of the part.
        seconds: wall time, summed over runs.
        bytes: size on disk.
        sets: fingerprints of the feature sets.
    """

    title: str
    seconds: float
    bytes: int
    sets: tuple[str, ...]


def read_costs(folder: StudyFolder) -> list[Cost]:
    """The costs of all parts, ordered by title."""
    stored = read_note(folder.root / COSTS_FILE)
    keys = {"seconds", "bytes", "sets"}
    known = {title: content for title, content in stored.items() if isinstance(content, dict) and set(content) == keys}
    return [Cost(title, **{**content, "sets": tuple(content["sets"])}) for title, content in known.items()]


def record_cost(folder: StudyFolder, title: str, stores: Sequence[FeatureStore], seconds: float) -> Cost:
    """Add the time of one run to a part's recorded cost, and return the total.

    Args:
        seconds: wall time of this run; 0 if the part was already finished.
    """
    known = {cost.title: cost for cost in read_costs(folder)}
    sets = tuple(store.fingerprint for store in stores)
    before = known.get(title)
    if before is not None and before.sets == sets:
        seconds += before.seconds
    cost = Cost(title, round(seconds, 1), sum(store.size for store in stores), sets)
    known[title] = cost
    content = {c.title: {k: v for k, v in asdict(c).items() if k != "title"} for c in known.values()}
    write_json(folder.root / COSTS_FILE, content)
    return cost
