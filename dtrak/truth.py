"""What models retrained on subsets say of a query: methods that read the truth instead of estimating it.

``truth/subsets.npz`` holds ``masks`` [M, N], which images each model was trained with, ``query_ids`` [Q]
and ``outputs`` [M, Q], the loss that each model leaves on each query.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from dtrak.errors import DtrakError

TRUTH_FILE = "subsets.npz"
ALPHAS = (0.1, 1.0, 10.0)


@dataclass(frozen=True)
class Truth:
    """The subset models of a study."""

    masks: Bool[np.ndarray, "m n"]
    outputs: Float[np.ndarray, "m q"]
    query_ids: tuple[str, ...]

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
        return self.outputs[:, self.query_ids.index(query_id)]


def load_truth(root: Path, study: str) -> Truth:
    """The truth below ``truth/``.

    Raises:
        DtrakError: there is none.
    """
    path = root / TRUTH_FILE
    if not path.exists():
        raise DtrakError(
            "This method reads models retrained on subsets, and there are none yet.",
            hint=f"python -m index_builder retrain {study}",
        )
    with np.load(path) as stored:
        return Truth(stored["masks"].astype(bool), stored["outputs"], tuple(stored["query_ids"].tolist()))


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

    folds = min(5, len(masks))
    return -RidgeCV(alphas=ALPHAS, cv=folds).fit(masks.astype(np.float64), losses).coef_
