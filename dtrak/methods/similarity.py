"""Baselines that need no diffusion model: pixels, an image embedding, or nothing but labels and creators.

A method of attribution is worth what it adds over the best of these. They get what makes D-TRAK good too: a kernel
with damping (ridge regression), linear or radial, optionally only among images of the same label.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from dtrak.methods.base import ZHENG, Damping, Features, Method, Scores
from dtrak.utils.errors import DtrakError

if TYPE_CHECKING:
    from jaxtyping import Float, Float64

    from dtrak.methods.attributor import Attributor
    from dtrak.methods.query import Query, QuerySet
    from dtrak.methods.settings import Setting
    from dtrak.methods.training_side import TrainingSide

MOST_ROWS = 5_000  # of a kernel matrix, which is dense and decomposed
Kind = Literal["pixels", "embedding"]
Field = Literal["label", "creator"]


@dataclass(frozen=True, kw_only=True)
class Baseline(Method):
    """Scores many queries at once; a single query is a batch of one."""

    baseline: ClassVar[bool] = True

    def scores(
        self, study: Attributor, setting: Setting, query: Query, features: Features
    ) -> tuple[Scores, float | None]:
        """See :class:`Method`."""
        damping = self._damping(setting)
        (found,) = self._scores(study, query.pixels[None], [query.label], [damping])
        return found[0], damping

    def score_matrices(
        self, study: Attributor, setting: Setting, asked: QuerySet, dampings: Sequence[float]
    ) -> list[Float[np.ndarray, "q n"]]:
        """See :class:`Method`."""
        free = self.damping is not None and setting.damping is None
        wanted: list[float | None] = list(dampings) if free else [self._damping(setting)]
        return self._scores(study, asked.pixels, [label or None for label in asked.labels], wanted)

    def _damping(self, setting: Setting) -> float | None:
        wanted: Damping = self.damping if setting.damping is None else setting.damping
        if isinstance(wanted, str):
            raise DtrakError(f"{self.title} needs a number for λ, not '{wanted}'.", hint="Set λ to a number.")
        return wanted

    @abstractmethod
    def _scores(
        self, study: Attributor, pixels: np.ndarray, names: Sequence[str | None], dampings: Sequence[float | None]
    ) -> list[Float64[np.ndarray, "q n"]]:
        """The scores of some images for each λ."""


@dataclass(frozen=True, kw_only=True)
class SimilarityMethod(Baseline):
    """Compares image vectors by inner product or cosine.

    Attributes:
        kind: what is compared.
    """

    kind: Kind

    @property
    def tested(self) -> bool:  # type: ignore[override]
        """Not embeddings: those of all unrelated images take longer than a page may."""
        return self.kind == "pixels"

    def _scores(
        self, study: Attributor, pixels: np.ndarray, names: Sequence[str | None], dampings: Sequence[float | None]
    ) -> list[Float64[np.ndarray, "q n"]]:
        from dtrak.methods.readout import Readout

        rows, queries = _vectors(study, self.kind, pixels)
        return [Readout(rows).scores(queries, normaliser=self.normaliser)]

    def note(self, study: TrainingSide) -> str:
        """The name of the embedding."""
        return f"The embedding is {study.folder.study.embedding}." if self.kind == "embedding" else ""


@dataclass(frozen=True, kw_only=True)
class KernelMethod(SimilarityMethod):
    """Kernel ridge regression on image vectors: τ(x, ·) = k(x)ᵀ (K + λI)⁻¹.

    Attributes:
        radial: use exp(−‖x − y‖² / median) instead of xᵀy.
        same_label: multiply the kernel by 1 for images of equal label, else 0.
    """

    radial: bool = False
    same_label: bool = False
    choices: ClassVar[frozenset[str]] = frozenset({"damping"})

    def require(self, study: TrainingSide) -> None:
        """See :class:`Method`."""
        if study.table.train_size > MOST_ROWS:
            raise DtrakError(
                f"{self.title} decomposes a matrix of N × N; it is limited to {MOST_ROWS:,} training images.",
                hint="Choose another baseline, such as pixel cosine.",
            )

    def _scores(
        self, study: Attributor, pixels: np.ndarray, names: Sequence[str | None], dampings: Sequence[float | None]
    ) -> list[Float64[np.ndarray, "q n"]]:
        self.require(study)
        rows, queries = _vectors(study, self.kind, pixels)
        values, vectors = study.kept(f"eigen {self.name}", lambda: np.linalg.eigh(self._train_kernel(study, rows)))
        kernel = self._kernel(queries, rows, _width(rows))
        if self.same_label:
            kernel = kernel * (np.array(study.table.labels_of(names))[:, None] == _train_labels(study))
        unit = float(values[values > 1e-10 * values.max()].mean())
        turned = kernel @ vectors
        return [(turned / (np.maximum(values, 0) + (d or 0.0) * unit)) @ vectors.T for d in dampings]

    def _train_kernel(self, study: Attributor, rows: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "n n"]:
        kernel = self._kernel(rows, rows, _width(rows))
        labels = _train_labels(study)
        return kernel * (labels[:, None] == labels) if self.same_label else kernel

    def _kernel(
        self, a: Float[np.ndarray, "a d"], b: Float[np.ndarray, "b d"], width: float
    ) -> Float64[np.ndarray, "a b"]:
        if not self.radial:
            return (a @ b.T).astype(np.float64)
        return np.exp(-_distances(a, b) / width)


@dataclass(frozen=True, kw_only=True)
class GroupMethod(Baseline):
    """The probability of a training image's label or creator among the training images of the query's condition.

    Attributes:
        field: "label" or "creator".
    """

    field: Field
    needs: str = "a condition, and labels or creators"
    tested: ClassVar[bool] = False

    def require(self, study: TrainingSide) -> None:
        """See :class:`Method`."""
        if len(set(study.table.train_records.column(self.field))) < 2:
            raise DtrakError(f"The training images do not differ by {self.field}.", hint=f"Add {self.field}s.")

    def _scores(
        self, study: Attributor, pixels: np.ndarray, names: Sequence[str | None], dampings: Sequence[float | None]
    ) -> list[Float64[np.ndarray, "q n"]]:
        table = study.table
        groups = table.train_records.column(self.field)
        of_name: dict[str | None, Counter[str | None]] = defaultdict(Counter)
        for name, group in zip(table.names, groups, strict=False):
            of_name[name][group] += 1
        rows = [[of_name[name][group] / (of_name[name].total() or 1) for group in groups] for name in names]
        return [np.array(rows, np.float64)]


def _vectors(
    study: Attributor, kind: Kind, pixels: np.ndarray
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "q d"]]:
    from dtrak.methods.embeddings import pixel_vectors, train_embeddings

    table = study.table
    if kind == "pixels":
        return pixel_vectors(np.asarray(table.pixels[: table.train_size])), pixel_vectors(pixels)
    return train_embeddings(study.folder, lambda: study.embedder), study.embedder(pixels)


def _distances(a: Float[np.ndarray, "a d"], b: Float[np.ndarray, "b d"]) -> Float64[np.ndarray, "a b"]:
    squares = (a.astype(np.float64) ** 2).sum(1)[:, None] + (b.astype(np.float64) ** 2).sum(1)
    return np.maximum(squares - 2 * (a @ b.T).astype(np.float64), 0)


def _width(rows: Float[np.ndarray, "n d"]) -> float:
    """The median squared distance between training images, from at most 500 of them."""
    some = rows[:: max(1, len(rows) // 500)]
    apart = _distances(some, some)[np.triu_indices(len(some), 1)]
    return float(np.median(apart)) if apart.size and np.median(apart) > 0 else 1.0


def _train_labels(study: Attributor) -> np.ndarray:
    return np.array(study.table.train_groups[0])


BASELINE = f"a baseline of {ZHENG}"
VECTORS: dict[Kind, tuple[str, str]] = {
    "pixels": ("Pixel", "pixels in [−1, 1]"), "embedding": ("Embedding", "embeddings of images"),
}  # fmt: skip
METHODS: tuple[Method, ...] = (
    *(
        SimilarityMethod(
            name=f"{title.lower()}-{short}",
            title=f"{title} {long}",
            kind=kind,
            normaliser="none" if short == "dot" else "cosine",
            formula=f"τ(x, n) = xᵀ xₙ{'' if short == 'dot' else ' / (‖x‖ ‖xₙ‖)'},  {vectors}",
            source=BASELINE,
        )
        for kind, (title, vectors) in VECTORS.items()
        for short, long in (("dot", "dot"), ("cos", "cosine"))
    ),
    *(
        KernelMethod(
            name=f"{title.lower()}-{'rbf' if radial else 'ridge'}{'-label' if same else ''}",
            title=f"{title} {'RBF' if radial else 'ridge'}{', same label' if same else ''}",
            kind=kind,
            damping=0.1,
            radial=radial,
            same_label=same,
            formula=f"τ(x, ·) = k(x)ᵀ (K + λI)⁻¹,  k(x, y) = {'exp(−‖x − y‖² / w)' if radial else 'xᵀ y'}"
            f"{' · [same label]' if same else ''},  {vectors}",
            source="kernel ridge regression, the control of this project's evaluation",
        )
        for kind, (title, vectors) in VECTORS.items()
        for radial in (False, True)
        for same in (False, True)
    ),
    *(
        GroupMethod(
            name=f"same-{field}",
            title=f"Same {field}",
            field=field,
            formula=f"τ(x, n) = P({field} of n | condition of x) among the training images",
            source="the control of this project's evaluation",
        )
        for field in ("label", "creator")
    ),
)
