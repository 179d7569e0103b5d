"""Counterfactuals: remove a method's top images, retrain, regenerate the query, and measure how much it changes.

As in Zheng et al. (ICLR 2024), section 5.3: for each query the top R images of a method are removed, the
model is retrained from the same seed, and the image is regenerated from the same noise. The reference image
comes from a model trained on all images with the same recipe. Every removal has a random removal of its own,
drawn for this query with the same number of images of each label and creator: a method must change the image
more than that. Controls are the whole label of the query, and another training seed without any removal.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy.stats import wilcoxon

from dtrak.evaluation.lds import holm
from dtrak.evaluation.removal import Removal, Task, draw_all, drawn, loss_of
from dtrak.evaluation.results import model_and_data, what_changed
from dtrak.execution.engines import Engine
from dtrak.execution.share import Share
from dtrak.methods.attributor import Attributor
from dtrak.methods.embeddings import pixel_vectors
from dtrak.methods.query import QuerySet, load_query_set
from dtrak.methods.settings import Setting
from dtrak.study.folder import StudyFolder, check_retrainable, truth_folders
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import read_json, write_json
from dtrak.utils.images import write_png
from dtrak.utils.noise import keyed_generator

METHODS_COMPARED = ("dtrak", "trak", "pixel-ridge")
MATCHED = ":matched"  # suffix: as many random images of each label and creator as the method removes
LABEL, SEED = "whole-label", "other-seed"  # controls
COMPARED = (*(f"{name}{kind}" for name in METHODS_COMPARED for kind in ("", MATCHED)), LABEL, SEED)
RESAMPLES = 2000
RESULTS = "counterfactual.json"
PICTURES = "counterfactual"


@dataclass(frozen=True)
class Pair:
    """One query before and after the removal of a method's top images.

    Attributes:
        method: a method's name, that name with ":matched", "whole-label" or "other-seed".
        query: index among the generated queries.
        removed: number of removed training images.
        distance: ℓ2 distance between the images' pixels in [−1, 1].
        cosine: cosine similarity of the images' embeddings.
        after: file names of the regenerated images; where there are several, the numbers are means.
        loss: change of the model's loss on the query's image; None if it was not measured.
    """

    method: str
    query: int
    removed: int
    distance: float
    cosine: float
    after: tuple[str, ...]
    loss: float | None = None


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

    @property
    def kinds(self) -> list[str]:
        """What was removed, in the order of the results."""
        return list(dict.fromkeys(pair.method for pair in self.pairs))

    def before(self, query: int) -> UInt8[np.ndarray, "r r 3"]:
        """A query's image from the model trained on all images."""
        return self.picture(before_name(query, self.behind["everything"]))

    def further(self, method: str, other: str) -> tuple[float, float, float]:
        """Mean difference of two methods' ℓ2 distances on the queries that both have, with its 95 % interval."""
        first, second = ({pair.query: pair.distance for pair in self.of(name)} for name in (method, other))
        return mean_with_interval(np.array([first[query] - second[query] for query in first if query in second]))

    def adjusted(self) -> dict[str, float]:
        """For each method, the p-value that its removal changes images as much as a matched random one (Wilcoxon).

        Adjusted for the number of methods (Holm); 1 where all differences are 0.
        """
        names = [name for name in self.kinds if name + MATCHED in self.kinds]
        found = []
        for name in names:
            other = {pair.query: pair.distance for pair in self.of(name + MATCHED)}
            apart = [pair.distance - other[pair.query] for pair in self.of(name)]
            found.append(float(wilcoxon(apart).pvalue) if np.any(apart) else 1.0)
        return dict(zip(names, holm(found), strict=True))

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
    numbers = chosen_queries(asked, queries)
    settings = {number: asked.settings(number) for number in numbers}

    def without(removed: Sequence[str]) -> Removal:
        return Removal.of(folder, removed, steps, precision)

    everything = without(())
    plans: dict[tuple[str, int], Removal] = {}
    for number in numbers:
        for kind, ids in removals(attributor, asked, number, remove).items():
            plans[kind, number] = without(ids)
        plans[SEED, number] = replace(everything, seed=everything.seed + 1)
    wanted: dict[Removal, set[int]] = {everything: set(numbers)}
    for (_, number), removal in plans.items():
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
        write_png(root / PICTURES / before_name(number, everything.folder(folder).name), before[number])
    for kind in COMPARED:
        for number in (n for n in numbers if (kind, n) in plans):
            removal = plans[kind, number]
            (after,) = drawn(folder, removal, [settings[number]])
            name = f"{number:03d}-{kind.replace(':', '-')}-{removal.folder(folder).name[:8]}.png"
            write_png(root / PICTURES / name, after)
            distance, cosine = compare(attributor, before[number], after[None])
            old, new = (loss_of(folder, r, settings[number]) for r in (everything, removal))
            change = None if old is None or new is None else new - old
            pairs.append(Pair(kind, number, len(removal.removed), distance, cosine, (name,), change))
    behind = {
        "queries": len(numbers),
        "removed": remove,
        "trainings": len(tasks),
        "steps": everything.steps,
        "recipe_steps": folder.study.training.steps,
        "epochs": round(everything.epochs(folder), 1),
        "precision": everything.precision,
        "seed": everything.seed,
        "embedding": folder.study.embedding,
        "settings": {name: Setting(name).text for name in METHODS_COMPARED},
        "everything": everything.folder(folder).name,
        **model_and_data(folder),
    }
    write_json(root / RESULTS, {"pairs": [asdict(pair) for pair in pairs], "behind": behind})
    return Counterfactuals(tuple(pairs), behind, root)


def removals(attributor: Attributor, asked: QuerySet, number: int, count: int) -> dict[str, list[str]]:
    """The ids of the images to remove for a query, by kind of removal.

    Methods that are not built are left out, and so is the label if too few images would remain.
    """
    table = attributor.table
    records = table.train_records
    groups = list(zip(*table.train_groups, strict=True))
    query = asked.queries[asked.heldout + number]
    found: dict[str, list[str]] = {}
    for name in METHODS_COMPARED:
        setting = Setting(name)
        if attributor.why_not(name) is not None:
            continue
        scores, _ = attributor.scores(setting, query, attributor.features(query, [setting], by_block=False))
        top = np.argsort(-scores, kind="stable")[:count].tolist()
        found[name] = [records[row].id for row in top]
        rows = matched(groups, top, keyed_generator("matched removal", number, name))
        found[name + MATCHED] = [records[row].id for row in rows]
    (label,) = table.labels_of([query.label])
    of_label = [name for name, own in zip(table.train_ids, records.column("label"), strict=True) if own == label]
    if 0 < len(of_label) < table.train_size - 1:
        found[LABEL] = of_label
    return found


def matched(groups: Sequence[Hashable], rows: Sequence[int], random: np.random.Generator) -> list[int]:
    """Random rows, as many of each group as ``rows`` has."""
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    counts = Counter(groups[row] for row in rows)
    drawn = [random.choice(members[group], count, replace=False).tolist() for group, count in counts.items()]
    return sorted(row for part in drawn for row in part)


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
