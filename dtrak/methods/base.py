"""What an attribution method is.

A method says what it is (title, formula, source), what it needs, and which choices it takes, and it computes: the
features a query must have, the scores of all training samples, and the same for many queries at several λ. To add
one, write a file with a :class:`Method`, and name it in :mod:`dtrak.methods.registry`. Nothing here imports torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Float64, Int

from dtrak.config import FeatureConfig, Split
from dtrak.utils.files import digest

if TYPE_CHECKING:
    from dtrak.index.faiss_index import QueryFeature
    from dtrak.methods.attributor import Attributor
    from dtrak.methods.query import Query, QuerySet
    from dtrak.methods.selection import Side
    from dtrak.methods.settings import Setting
    from dtrak.methods.training_side import TrainingSide
Features = dict[str, "QueryFeature"]  # of one query, by the keys of their needs
Scores = Float64[np.ndarray, " n"]
Ends = tuple[Int[np.ndarray, " top"], Int[np.ndarray, " top"]]
Damping = float | Literal["auto"] | None
Normaliser = Literal["none", "norm", "influence", "cosine"]


@dataclass(frozen=True)
class Need:
    """A feature that a query must have.

    Attributes:
        config: the feature set of the training side that it belongs to.
        identity: everything its numbers depend on.
        make: computes it, where it is not just the query's own feature of that set.
    """

    config: FeatureConfig
    identity: dict[str, Any]
    make: Callable[[Attributor, Query], QueryFeature] | None = None

    @property
    def key(self) -> str:
        """The fingerprint of the query's feature."""
        return digest(self.identity)


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """One way to score training samples for a query.

    Attributes:
        name: on the command line and in URLs.
        title: as people read it.
        formula: in the notation of docs/glossary.md.
        source: the paper.
        needs: what must be there, in words.
        output: the output function of its features; empty without features.
        damping: the default λ, relative to the kernel's mean non-zero eigenvalue; None where there is no kernel.
        normaliser: what a score is divided by: nothing, ‖φₙ‖, ‖(ΦᵀΦ + λI)⁻¹ φₙ‖ ("influence"), or
            ‖φₙ‖ ‖φ(x)‖ ("cosine").
        choices: fields of a :class:`Setting` that may be changed.
        uses_features: whether it compares stored features; others compare images, or read retrained models.
        splits: whether a score is a sum over timesteps and blocks, so that its parts can be shown.
        fitted: whether it is fitted to retrained models, so that it is no fair rival of those that are not.
        control: whether it is a negative control.
        generated_only: whether the query must have been generated here.
        light: whether the query's feature costs no more than a few passes of the network.
    """

    name: str
    title: str
    formula: str
    source: str
    needs: str = "nothing but the images"
    output: str = ""
    damping: float | None = None
    normaliser: Normaliser = "none"
    choices: ClassVar[frozenset[str]] = frozenset()
    uses_features: ClassVar[bool] = False
    splits: ClassVar[bool] = False
    fitted: ClassVar[bool] = False
    control: ClassVar[bool] = False
    generated_only: ClassVar[bool] = False
    light: ClassVar[bool] = True

    def takes(self, choice: str) -> bool:
        """Whether a field of a :class:`Setting` may be changed."""
        return choice in self.choices

    def require(self, study: TrainingSide) -> None:
        """Refuse a study that lacks what the method needs.

        Raises:
            DtrakError: it says what to build.
        """

    def sides(self, study: TrainingSide, setting: Setting, split: Split = "train") -> list[Side]:
        """The stored features behind a setting, one a model; none for methods without features.

        Raises:
            DtrakError: the study does not list them.
        """
        return []

    def query_needs(self, study: Attributor, setting: Setting, query: Query) -> list[Need]:
        """The features that the query must have.

        Raises:
            DtrakError: the study lacks them, or the query cannot have them.
        """
        return []

    @abstractmethod
    def scores(
        self, study: Attributor, setting: Setting, query: Query, features: Features
    ) -> tuple[Scores, float | None]:
        """The scores of all training samples in float64, and the λ that was used.

        Raises:
            DtrakError: something that the method needs is not built.
        """

    def score_matrices(
        self, study: Attributor, setting: Setting, asked: QuerySet, dampings: Sequence[float]
    ) -> list[Float[np.ndarray, "q n"]]:
        """The scores of all queries: a matrix for each λ, or one alone where λ does not enter.

        Raises:
            DtrakError: something is not built.
        """
        return [np.stack([self.scores(study, setting, query, {})[0] for query in asked.queries])]

    def ends(
        self, study: Attributor, setting: Setting, query: Query, features: Features, damping: float | None, top: int
    ) -> Ends | None:
        """Both ends of the ranking as the index finds them, where it can."""
        return None

    def note(self, study: TrainingSide) -> str:
        """What a page adds to the formula."""
        return ""


LOSS, SQUARE = "loss", "mean-squared-l2-norm"
PARK = "Park et al., ICML 2023 (arXiv 2303.14186), for diffusion as in Zheng et al."
ZHENG = "Zheng et al., ICLR 2024 (arXiv 2311.00500)"
