"""Losses of subset models on the evaluation queries.

Masks follow from (family, number); :mod:`dtrak.evaluation.subsets` trains the models. The family "lds"
evaluates methods, the family "fit" is for methods that are fitted to retrained models; they are independent.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from dtrak.data import drawn
from dtrak.methods.query import load_query_set
from dtrak.study.folder import StudyFolder, recipe_digest, truth_folders
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import digest, read_json
from dtrak.utils.noise import keyed_generator

Family = Literal["lds", "fit"]


@dataclass(frozen=True)
class SubsetTruth:
    """The finished subset models of one family.

    Attributes:
        masks: the images that each subset contains.
        losses: loss of each subset on each query, averaged over seeds.
        seeds: models per subset.
        recipe: training and evaluation settings: "steps", "precision", "timesteps".
    """

    masks: Bool[np.ndarray, "m n"]
    losses: Float[np.ndarray, "m q"]
    query_ids: tuple[str, ...]
    seeds: int
    recipe: dict[str, Any] = field(default_factory=dict)

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
    found = {
        "data": folder.table.fingerprint(),
        "recipe": recipe_digest(folder),
        "queries": digest(load_query_set(folder).ids),
    }
    asked = folder.study.truth.model_dump(mode="json", exclude={"path", "generated"}, exclude_defaults=True)
    return found | ({"asked": digest(asked)} if asked else {})


def load_subsets(folder: StudyFolder, family: Family) -> SubsetTruth:
    """The finished subset models of a family, averaged over the seeds that all their subsets have.

    Models of another recipe, other data or other queries are ignored.

    Raises:
        DtrakError: there are none.
    """
    paths = [path for root in truth_folders(folder) for path in sorted((root / family).glob("*.json"))]
    hint = f"python -m index_builder retrain {folder.study.name}{' --family fit' if family == 'fit' else ''}"
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
    rows = np.array([content["losses"] for content in used]).reshape(len(numbers), len(seeds), -1).mean(1)
    masks = np.stack([subset_mask(folder, family, n) for n in numbers])
    recipe: dict[str, Any] = {
        "steps": used[0]["steps"],
        "timesteps": used[0]["timesteps"],
        "precision": ", ".join(sorted({content["precision"] for content in used})),
    }
    return SubsetTruth(masks, rows, tuple(load_query_set(folder).ids), len(seeds), recipe)


def subset_mask(folder: StudyFolder, family: Family, number: int) -> Bool[np.ndarray, " n"]:
    """The training images of a subset: a random half (see :class:`TruthConfig`).

    Raises:
        DtrakError: with ``first_seed``, the other family uses the same half.
    """
    table, first = folder.table, folder.study.truth.first_seed
    mask = np.zeros(table.train_size, dtype=bool)
    if first is not None:
        other = first["fit" if family == "lds" else "lds"]
        if first[family] < other <= first[family] + 2 * number and (other - first[family]) % 2 == 0:
            raise DtrakError(
                f"Subset {number} of family '{family}' is also used by the other family.",
                hint="Train fewer subsets, or change truth.first_seed.",
            )
        labels = [record.label for record in table.records[: table.train_size]]
        chosen = drawn(labels, table.train_size // 2, first[family] + 2 * number, folder.study.data.stratify)
    else:
        order = keyed_generator(f"subset-{family}", number, "").permutation(table.train_size)
        chosen = order[: table.train_size // 2]
    mask[chosen] = True
    return mask
