"""Losses of subset models on the evaluation queries.

Masks follow from (family, number); :mod:`dtrak.evaluation.subsets` trains the models. The families:

    lds         random halves, stratified by label and creator; evaluate methods
    fit         other halves, for methods that are fitted to retrained models
    remove-20   without a random 20 %
    remove-5    without a random 5 %
    creators    without one creator
    clusters    without an image and those of its label that look most like it, 5 % in all
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from dtrak.data import drawn
from dtrak.methods.query import load_query_set
from dtrak.study.folder import StudyFolder, recipe_digest, truth_folders
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import digest, read_json
from dtrak.utils.noise import keyed_generator

Family = Literal["lds", "fit", "remove-20", "remove-5", "creators", "clusters"]
FAMILIES: tuple[Family, ...] = get_args(Family)
REMOVED = {"lds": 0.5, "fit": 0.5, "remove-20": 0.2, "remove-5": 0.05}
CLUSTER = 0.05  # of the training images


@dataclass(frozen=True)
class SubsetTruth:
    """The finished subset models of one family.

    Attributes:
        masks: the images that each subset contains.
        losses: loss of each subset on each query, averaged over seeds.
        seeds: models per subset.
        repeats: losses of two trainings of the same subsets, for those that were trained with two seeds; else None.
        recipe: training and evaluation settings: "steps", "precision", "timesteps".
        repeated: the places in ``masks`` of the subsets of ``repeats``.
    """

    masks: Bool[np.ndarray, "m n"]
    losses: Float[np.ndarray, "m q"]
    query_ids: tuple[str, ...]
    seeds: int
    repeats: tuple[Float[np.ndarray, "r q"], Float[np.ndarray, "r q"]] | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    repeated: tuple[int, ...] = ()

    def of(self, query_id: str) -> Float[np.ndarray, " m"]:
        """The losses of one query.

        Raises:
            DtrakError: the models were not evaluated on it.
        """
        if query_id not in self.query_ids:
            raise DtrakError(
                "The retrained models were not evaluated on this image.",
                hint="Choose one of the evaluation queries: a held-out image or a generated query.",
            )
        return self.losses[:, self.query_ids.index(query_id)]


def belongs_to(folder: StudyFolder) -> dict[str, str]:
    """What a subset model's losses are valid for: digests of the training data, the recipe and the queries.

    Raises:
        DtrakError: there are no evaluation queries yet.
    """
    truth = folder.study.truth
    found = {
        "data": folder.table.fingerprint(),
        "recipe": recipe_digest(folder),
        "queries": digest(load_query_set(folder).ids),
    }
    asked = truth.model_dump(mode="json", include={"timesteps", "draws", "first_seed"}, exclude_defaults=True)
    if truth.stratified and truth.first_seed is None:
        asked["stratified"] = True
    return found | ({"asked": digest(asked)} if asked else {})


def load_subsets(folder: StudyFolder, family: Family) -> SubsetTruth:
    """The finished subset models of a family, averaged over the seeds that all their subsets have.

    Models of another recipe, other data or other queries are ignored.

    Raises:
        DtrakError: there are none.
    """
    paths = [path for root in truth_folders(folder) for path in sorted((root / family).glob("*.json"))]
    chosen = "" if family == "lds" else f" --family {family}"
    hint = f"python -m index_builder retrain {folder.study.name}{chosen}"
    if not paths:
        raise DtrakError("This needs retrained models, and there are none yet.", hint=hint)
    now, found = belongs_to(folder), dict[tuple[int, int], dict[str, Any]]()
    for path in paths:
        content = read_json(path)
        if content.get("belongs_to") == now:
            found.setdefault((content["number"], content["seed"]), content)
    if not found:
        raise DtrakError(
            "The existing retrained models belong to another recipe, other data or other queries.", hint=hint
        )
    every = [seed for _, seed in found]
    first = max(sorted(set(every)), key=every.count)
    numbers = sorted(number for number, seed in found if seed == first)
    seeds = [seed for seed in sorted(set(every)) if all((number, seed) in found for number in numbers)]
    used = [found[number, seed] for number in numbers for seed in seeds]
    rows = np.stack([_total(content) for content in used]).reshape(len(numbers), len(seeds), -1).mean(1)
    second = next((s for s in sorted(set(every)) if s != first), None)
    twice = [number for number in numbers if second is not None and (number, second) in found]
    repeats = None
    if second is not None and len(twice) > 2:
        repeats = (
            np.stack([_total(found[number, first]) for number in twice]),
            np.stack([_total(found[number, second]) for number in twice]),
        )
    masks = np.stack([subset_mask(folder, family, n) for n in numbers])
    recipe: dict[str, Any] = {
        "steps": used[0]["steps"],
        "timesteps": used[0]["timesteps"],
        "precision": ", ".join(sorted({content["precision"] for content in used})),
    }
    places = tuple(numbers.index(number) for number in twice) if repeats else ()
    return SubsetTruth(masks, rows, tuple(load_query_set(folder).ids), len(seeds), repeats, recipe, places)


def _total(content: dict[str, Any]) -> Float[np.ndarray, " q"]:
    """The loss of each query: the mean over its (timestep, draw) pairs, if they are stored one by one."""
    losses = np.array(content["losses"])
    return losses if losses.ndim == 1 else losses.mean(1)


def subset_mask(folder: StudyFolder, family: Family, number: int) -> Bool[np.ndarray, " n"]:
    """The training images of a subset of a family.

    Raises:
        DtrakError: there is no such subset, or with ``first_seed`` the other family uses the same half.
    """
    records = folder.table.train_records
    if family == "creators":
        creators = records.distinct("creator")
        if not number < len(creators) > 1:
            found = f"There are {len(creators)} creators"
            raise DtrakError(f"{found}; number {number} does not exist.", hint="Lower --subsets.")
        return np.array(records.column("creator")) != creators[number]
    if family == "clusters":
        return _without_cluster(folder, number)
    keep, first = 1 - REMOVED[family], folder.study.truth.first_seed
    if first is not None and family in ("lds", "fit"):
        other = first["fit" if family == "lds" else "lds"]
        if first[family] < other <= first[family] + 2 * number and (other - first[family]) % 2 == 0:
            raise DtrakError(
                f"Subset {number} of family '{family}' is also used by the other family.",
                hint="Train fewer subsets, or change truth.first_seed.",
            )
        labels = records.column("label")
        chosen = drawn(labels, len(records) // 2, first[family] + 2 * number, folder.study.data.stratify)
        return np.isin(np.arange(len(records)), chosen)
    random = keyed_generator(f"subset-{family}", number, "")
    if folder.study.truth.stratified:
        return stratified(random, keep, *folder.table.train_groups)
    chosen = random.permutation(len(records))[: int(keep * len(records))]
    return np.isin(np.arange(len(records)), chosen)


def stratified(
    random: np.random.Generator, keep: float, labels: Sequence[str], creators: Sequence[str]
) -> Bool[np.ndarray, " n"]:
    """A random share ``keep`` of the images, of each label and of each creator within it but for rounding.

    Systematic sampling: along a random order in which labels, and creators within them, lie together, an image is
    kept whenever the running total of ``keep`` passes a whole number.
    """
    count = len(labels)
    by_label, by_creator = (
        random.permutation(len(set(of)))[np.unique(np.array(of), return_inverse=True)[1]] for of in (labels, creators)
    )
    order = np.lexsort((random.permutation(count), by_creator, by_label))
    totals = np.floor(random.random() + keep * np.arange(count + 1))
    mask = np.zeros(count, dtype=bool)
    mask[order] = np.diff(totals) > 0
    return mask


def _without_cluster(folder: StudyFolder, number: int) -> Bool[np.ndarray, " n"]:
    """All images but a random one and those of its label that look most like it; every cluster has one size."""
    from dtrak.methods.embeddings import Embedder, train_embeddings

    records = folder.table.train_records
    labels = np.array(folder.table.train_groups[0])
    size = max(2, round(CLUSTER * len(records)))
    sizes = dict(zip(*np.unique(labels, return_counts=True), strict=True))
    large = [row for row, label in enumerate(labels) if sizes[label] > size]
    if not large:
        raise DtrakError("No label has enough images for a cluster.", hint="Use the family remove-5.")
    centre = large[int(keyed_generator("cluster", number, "").integers(len(large)))]
    rows = train_embeddings(folder, lambda: Embedder(folder.study.embedding_source))
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    alike = np.where(labels == labels[centre], rows @ rows[centre], -np.inf)
    mask = np.ones(len(records), dtype=bool)
    mask[np.argsort(-alike, kind="stable")[:size]] = False
    return mask
