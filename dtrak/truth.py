"""What models retrained on subsets lose, and the methods that read this truth instead of estimating it.

Masks follow from (family, number); :mod:`dtrak.evaluation.subsets` trains the models. The family "lds"
is for scoring methods, "fit" for methods that are fitted to truth: they never meet.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from dtrak.errors import DtrakError
from dtrak.files import digest, read_json
from dtrak.noise import keyed_generator
from dtrak.query import load_query_set
from dtrak.studies import StudyFolder, truth_folders

Family = Literal["lds", "fit"]
ALPHAS = (0.1, 1.0, 10.0)


@dataclass(frozen=True)
class SubsetTruth:
    """The finished subset models of one family; the losses of one subset's seeds are averaged.

    Attributes:
        masks: which images each was trained with.
        losses: of each subset on each query.
        seeds: how many models stand behind each row.
        recipe: how they were trained and asked: "steps", "precision", "timesteps".
    """

    masks: Bool[np.ndarray, "m n"]
    losses: Float[np.ndarray, "m q"]
    query_ids: tuple[str, ...]
    seeds: tuple[int, ...]
    recipe: dict[str, Any] = field(default_factory=dict)

    def of(self, query_id: str) -> Float[np.ndarray, " m"]:
        """The losses of one query.

        Raises:
            DtrakError: the models were not evaluated on it.
        """
        if query_id not in self.query_ids:
            raise DtrakError(
                "The retrained models were not evaluated on this image.",
                hint="Choose a held-out image or one of the generated images that the ground truth was made for.",
            )
        return self.losses[:, self.query_ids.index(query_id)]


def load_subsets(folder: StudyFolder, family: Family) -> SubsetTruth:
    """What is finished of a family.

    Raises:
        DtrakError: nothing is, or it belongs to other training data.
    """
    table = folder.table
    files = {path.name: path for root in reversed(truth_folders(folder)) for path in (root / family).glob("*.json")}
    if not files:
        option = " --family fit" if family == "fit" else ""
        raise DtrakError(
            "This needs models retrained on subsets, and there are none yet.",
            hint=f"python -m index_builder retrain {folder.study.name}{option}",
        )
    ids = load_query_set(folder).ids
    data, asked, losses = table.fingerprint(), digest(ids), dict[int, list[list[float]]]()
    recipe: dict[str, Any] = {}
    for _, path in sorted(files.items()):
        content = read_json(path)
        if (content["data"], content["queries"]) != (data, asked):
            raise DtrakError(
                f"{path} was made for other training data or other queries.", hint="Move the folder away and retrain."
            )
        recipe = {key: content[key] for key in ("steps", "precision", "timesteps")}
        losses.setdefault(content["number"], []).append(content["losses"])
    numbers = sorted(losses)
    rows = [np.mean(losses[number], axis=0) for number in numbers]
    masks = np.stack([subset_mask(table.train_ids, family, n) for n in numbers])
    return SubsetTruth(masks, np.stack(rows), tuple(ids), tuple(len(losses[n]) for n in numbers), recipe)


def subset_mask(ids: Sequence[str], family: Family, number: int) -> Bool[np.ndarray, " n"]:
    """Which images a subset model is trained with: half of them."""
    mask = np.zeros(len(ids), dtype=bool)
    mask[keyed_generator(f"subset-{family}", number, "").permutation(len(ids))[: len(ids) // 2]] = True
    return mask


def empirical_influence(masks: Bool[np.ndarray, "m n"], losses: Float[np.ndarray, " m"]) -> Float[np.ndarray, " n"]:
    """Mean loss without n minus mean loss with n; 0 for an image that all or none of the models saw."""
    held = masks.astype(np.float64)
    inside, outside = held.sum(0), (1 - held).sum(0)
    known = (inside > 0) & (outside > 0)
    with_n, without_n = held.T @ losses, (1 - held).T @ losses
    difference = without_n / np.maximum(outside, 1) - with_n / np.maximum(inside, 1)
    return np.where(known, difference, 0.0)


def datamodel(masks: Bool[np.ndarray, "m n"], losses: Float[np.ndarray, " m"]) -> Float[np.ndarray, " n"]:
    """−w of a ridge regression of the loss on the masks, α from {0.1, 1, 10} by 5-fold cross-validation."""
    from sklearn.linear_model import RidgeCV

    if len(masks) < 2:
        raise DtrakError("A datamodel needs at least two subset models.", hint="Let the retraining go on.")
    folds = min(5, len(masks))
    return -RidgeCV(alphas=ALPHAS, cv=folds).fit(masks.astype(np.float64), losses).coef_
