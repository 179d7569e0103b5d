"""Counterfactuals: remove a method's top images, retrain, regenerate the query, and measure how much it changes.

As in Zheng et al. (ICLR 2024), section 5.3: for each query the top R images of a method are removed, the
model is retrained from the same seed, and the image is regenerated from the same noise. A good method
changes the image more than the removal of R random images does. The reference image comes from a model
trained on all images with the same recipe. The random baseline uses a few fixed sets for all queries; each
query's distances are averaged over them.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from dtrak.evaluation.removal import Removal, Task, draw_all, drawn
from dtrak.evaluation.results import model_and_data, what_changed
from dtrak.execution.engines import Engine
from dtrak.execution.share import Share
from dtrak.methods.attributor import Attributor
from dtrak.methods.embeddings import pixel_vectors
from dtrak.methods.query import QuerySet, load_query_set
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting
from dtrak.study.folder import StudyFolder, check_retrainable, truth_folders
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import atomic_write, read_json, write_json
from dtrak.utils.noise import keyed_generator

COMPARED = ("random", "embedding-cos", "trak", "dtrak")
RANDOM_SETS = 4
RESAMPLES = 2000
RESULTS = "counterfactual.json"
PICTURES = "counterfactual"


@dataclass(frozen=True)
class Pair:
    """One query before and after the removal of a method's top images.

    Attributes:
        query: index among the generated queries.
        removed: number of removed training images, R.
        distance: ℓ2 distance between the images' pixels in [−1, 1].
        cosine: cosine similarity of the images' embeddings.
        after: file names of the regenerated images; several for random removal, where the numbers are means.
    """

    method: str
    query: int
    removed: int
    distance: float
    cosine: float
    after: tuple[str, ...]


@dataclass(frozen=True)
class Counterfactuals:
    """The stored results of :func:`counterfactual`.

    Attributes:
        behind: sample sizes, settings and digests that the results depend on.
        folder: the folder that holds the images.
        stale: what has changed since the measurement, as a sentence; empty if nothing.
    """

    pairs: tuple[Pair, ...]
    behind: dict[str, Any]
    folder: Path
    stale: str = ""

    def picture(self, name: str) -> UInt8[np.ndarray, "r r 3"]:
        """A stored image by its file name."""
        with Image.open(self.folder / PICTURES / name) as image:
            return np.asarray(image.convert("RGB"))

    @property
    def queries(self) -> list[int]:
        """Indices of the queries."""
        return sorted({pair.query for pair in self.pairs})

    def before(self, query: int) -> UInt8[np.ndarray, "r r 3"]:
        """A query's image from the model trained on all images."""
        return self.picture(before_name(query, self.behind["everything"]))

    def further(self, method: str, other: str) -> tuple[float, float, float]:
        """Mean difference of two methods' ℓ2 distances on the same queries, with its 95 % interval."""
        distances = [np.array([pair.distance for pair in self.of(name)]) for name in (method, other)]
        return mean_with_interval(distances[0] - distances[1])

    def of(self, method: str) -> list[Pair]:
        """One method's pairs, ordered by query."""
        return sorted((p for p in self.pairs if p.method == method), key=lambda p: p.query)


def before_name(query: int, model: str) -> str:
    """File name of a query's image by the named model, which was trained on all images."""
    return f"{query:03d}-all-{model[:8]}.png"


def chosen_queries(asked: QuerySet, count: int) -> list[int]:
    """Indices of a random choice of generated queries; a smaller count gives a prefix of a larger one."""
    generated = len(asked.labels) - asked.heldout
    return keyed_generator("counterfactual", 0, "").permutation(generated)[:count].tolist()


def counterfactual(
    attributor: Attributor,
    queries: int,
    remove: int,
    engine: Engine,
    steps: int | None = None,
    precision: str | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
    share: Share | None = None,
) -> Counterfactuals | None:
    """Retrain without each method's top ``remove`` images, regenerate the queries, and measure; resumable.

    Args:
        queries: number of generated queries to use.
        steps: training steps; default the study's.
        report: called with (steps trained, total steps).
        share: train and generate only this shard; then nothing is measured and None is returned.

    Raises:
        DtrakError: too many images are removed, the study cannot be retrained, or there are no queries yet.
    """
    folder = attributor.folder
    if not 0 < remove < attributor.table.train_size - 1:
        raise DtrakError(
            f"Cannot remove {remove} of {attributor.table.train_size} training images: at least two must remain.",
            hint="Use a smaller --remove.",
        )
    check_retrainable(folder)
    asked = load_query_set(folder)
    settings_of = {name: Setting(name) for name in COMPARED}
    numbers = chosen_queries(asked, queries)
    settings = {number: asked.settings(number) for number in numbers}

    def without(removed: Sequence[str]) -> Removal:
        return Removal.of(folder, removed, steps, precision)

    plans = {(m, n): [without(ids) for ids in removals(attributor, settings_of[m], asked, n, remove)]
             for m in COMPARED for n in numbers}  # fmt: skip
    everything = without(())
    wanted: dict[Removal, set[int]] = {everything: set(numbers)}
    for (_, number), found in plans.items():
        for removal in found:
            wanted.setdefault(removal, set()).add(number)
    tasks = [Task(removal, tuple(settings[n] for n in sorted(of))) for removal, of in wanted.items()]
    mine = [task for place, task in enumerate(tasks) if share is None or share.has(place)]
    draw_all(folder, mine, engine, report, attributor.device)
    if share is not None:
        return None
    before = dict(zip(numbers, drawn(folder, everything, [settings[n] for n in numbers]), strict=True))
    root = truth_folders(folder)[0]
    pairs = []
    for number in numbers:
        _write_png(root / PICTURES / before_name(number, everything.folder(folder).name), before[number])
    for (method, number), found in plans.items():
        names, pictures = [], []
        for place, removal in enumerate(found):
            (after,) = drawn(folder, removal, [settings[number]])
            one = f"-{place}" if len(found) > 1 else ""
            names.append(f"{number:03d}-{method}{one}-{removal.folder(folder).name[:8]}.png")
            pictures.append(after)
            _write_png(root / PICTURES / names[-1], after)
        distance, cosine = compare(attributor, before[number], np.stack(pictures))
        pairs.append(Pair(method, number, remove, distance, cosine, tuple(names)))
    behind = {
        "queries": len(numbers),
        "removed": remove,
        "trainings": len(tasks),
        "random_sets": RANDOM_SETS,
        "steps": everything.steps,
        "recipe_steps": folder.study.training.steps,
        "epochs": round(everything.epochs(folder), 1),
        "precision": everything.precision,
        "seed": everything.seed,
        "embedding": folder.study.embedding,
        "settings": {name: setting.text for name, setting in settings_of.items()},
        "everything": everything.folder(folder).name,
        **model_and_data(folder),
    }
    write_json(root / RESULTS, {"pairs": [asdict(pair) for pair in pairs], "behind": behind})
    return Counterfactuals(tuple(pairs), behind, root)


def removals(attributor: Attributor, setting: Setting, asked: QuerySet, number: int, count: int) -> list[list[str]]:
    """The ids of the images to remove for a query: a method's top ``count``, or one list for each random set."""
    ids = attributor.table.train_ids
    if METHODS[setting.method].control:
        return [
            [ids[row] for row in keyed_generator("random removal", n, "").permutation(len(ids))[:count]]
            for n in range(RANDOM_SETS)
        ]
    query = asked.queries[asked.heldout + number]
    scores, _ = attributor.scores(setting, query, attributor.features(query, [setting], by_block=False))
    return [[ids[row] for row in np.argsort(-scores, kind="stable")[:count]]]


def compare(
    attributor: Attributor, before: UInt8[np.ndarray, "r r 3"], after: UInt8[np.ndarray, "n r r 3"]
) -> tuple[float, float]:
    """Mean ℓ2 distance of pixels in [−1, 1] and mean cosine of embeddings, between one image and several."""
    pixels = pixel_vectors(np.concatenate([before[None], after]))
    embedded = attributor.embedder(np.concatenate([before[None], after])).astype(np.float64)
    embedded /= np.linalg.norm(embedded, axis=1, keepdims=True)
    distances = np.linalg.norm(pixels[1:] - pixels[0], axis=1)
    return float(distances.mean()), float((embedded[1:] @ embedded[0]).mean())


def mean_with_interval(values: Float[np.ndarray, " q"]) -> tuple[float, float, float]:
    """The mean over queries, with its 95 % bootstrap interval (resampling queries)."""
    draws = keyed_generator("bootstrap", 0, "queries").integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def load_counterfactuals(folder: StudyFolder) -> Counterfactuals | None:
    """The results measured here or else shipped with the study; None if there are none."""
    for root in truth_folders(folder):
        if (root / RESULTS).exists():
            content = read_json(root / RESULTS)
            pairs = tuple(Pair(**{**pair, "after": tuple(pair["after"])}) for pair in content["pairs"])
            return Counterfactuals(pairs, content["behind"], root, what_changed(folder, content["behind"]))
    return None


def _write_png(path: Path, pixels: UInt8[np.ndarray, "r r 3"]) -> None:
    with atomic_write(path) as file:
        Image.fromarray(pixels).save(file, "PNG", optimize=True)
