"""Methods that compare projected gradients: φ(x)ᵀ (ΦᵀΦ + λI)⁻¹ φₙ, with or without the kernel and a normaliser.

All use the same feature stores: a method is an output function, a preconditioner (the kernel at some λ, or the
identity) and a normaliser of the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dtrak.config import Split
from dtrak.methods.base import LOSS, PARK, SQUARE, ZHENG, Damping, Features, Method, Need, Normaliser, Scores, Search

if TYPE_CHECKING:
    from jaxtyping import Float, Float64

    from dtrak.methods.attributor import Attributor
    from dtrak.methods.query import Query, QuerySet
    from dtrak.methods.readout import Readout
    from dtrak.methods.selection import Side
    from dtrak.methods.settings import Setting
    from dtrak.methods.training_side import TrainingSide

FEATURE_CHOICES = frozenset(
    {"output", "timesteps", "strategy", "draws", "projection_dim", "projection_seed", "normaliser", "damping"}
)


@dataclass(frozen=True, kw_only=True)
class GradientMethod(Method):
    """A method that scores by inner products of gradient features.

    Attributes:
        output: the output function of its features.
        residual: whether to average gradients of length 1 and to apply the residual and leverage terms, as DAS does.
    """

    output: str
    residual: bool = False
    needs: str = "features of its output function"
    uses_features: ClassVar[bool] = True
    regional: ClassVar[bool] = True
    choices: ClassVar[frozenset[str]] = FEATURE_CHOICES | {"checkpoint"}

    @property
    def splits(self) -> bool:  # type: ignore[override]
        """Yes, except for DAS, which squares its scores."""
        return not self.residual

    @property
    def one_model(self) -> bool:
        """Whether it uses a single model, which can be chosen."""
        return "checkpoint" in self.choices

    def takes(self, choice: str) -> bool:
        """See :class:`Method`; λ applies only with a kernel."""
        return super().takes(choice) and (choice != "damping" or self.damping is not None)

    def models_of(self, study: TrainingSide, setting: Setting) -> list[str]:
        """The models whose scores are averaged.

        Raises:
            DtrakError: the study has none of them.
        """
        return [setting.checkpoint]

    def require(self, study: TrainingSide) -> None:
        """See :class:`Method`."""
        from dtrak.methods.settings import Setting

        for side in self.sides(study, Setting(self.name)):
            for source in side.sources:
                study.store(source.config)

    def sides(self, study: TrainingSide, setting: Setting, split: Split = "train") -> list[Side]:
        """See :class:`Method`."""
        from dtrak.methods.selection import select

        output = setting.output or self.output
        models = self.models_of(study, setting)
        if len(models) > 1 and setting.timesteps is None:  # use the same timesteps for all models
            alone = [select(study.folder.study, setting, output, model, split, self.residual) for model in models]
            setting = setting.with_(timesteps=min(len(side.pairs) for side in alone) // setting.draws)
        return [select(study.folder.study, setting, output, model, split, self.residual) for model in models]

    def query_needs(self, study: Attributor, setting: Setting, query: Query) -> list[Need]:
        """See :class:`Method`."""
        configs = dict.fromkeys(source.config for side in self.sides(study, setting) for source in side.sources)
        return [Need(config, study.identity(config.model_copy(update={"split": "train"}))) for config in configs]

    def query_vector(
        self, study: Attributor, setting: Setting, side: Side, features: Features, query: Query
    ) -> Float[np.ndarray, " k"]:
        """φ(x) for one model under a setting.

        Raises:
            DtrakError: the feature was not computed.
        """
        source = side.sources[0]
        if len(side.sources) == 1 and source.whole and side.dim == source.config.projection_dim:
            return study.of_query(source, features).vector
        return study.query_parts(side, features).sum(0).astype(np.float32)

    def query_vectors(self, study: Attributor, setting: Setting, asked: QuerySet) -> list[Float[np.ndarray, "q k"]]:
        """φ of each evaluation query, one matrix per model."""
        matrices = [study.queries(side) for side in self.sides(study, setting, asked.split)]
        return matrices if asked.rows is None else [matrix[list(asked.rows)] for matrix in matrices]

    def wanted_damping(self, setting: Setting) -> Damping:
        """The setting's λ, or the method's default."""
        return self.damping if setting.damping is None else setting.damping

    def divided_by(self, setting: Setting) -> Normaliser:
        """The setting's normaliser, or the method's default."""
        return setting.normaliser or self.normaliser

    def row_scores(
        self, readout: Readout, queries: Float[np.ndarray, "*q k"], damping: float | None, setting: Setting
    ) -> Float64[np.ndarray, "*q n"]:
        """The scores of all training samples for one model at one λ."""
        return readout.scores(queries, damping, self.divided_by(setting), self.residual)

    def sweep(
        self, readout: Readout, query: Float[np.ndarray, " k"], dampings: Float64[np.ndarray, " l"], setting: Setting
    ) -> Float64[np.ndarray, "l n"]:
        """The scores of one query at several λ, from one decomposition."""
        return readout.sweep(query, dampings, self.divided_by(setting), self.residual)

    def scores(
        self, study: Attributor, setting: Setting, query: Query, features: Features
    ) -> tuple[Scores, float | None]:
        """See :class:`Method`."""
        found, used = [], []
        for side in self.sides(study, setting):
            readout = study.readout(side)
            damping = readout.damping(self.wanted_damping(setting))
            vector = self.query_vector(study, setting, side, features, query)
            found.append(self.row_scores(readout, vector, damping, setting))
            used.append(damping)
        return np.mean(found, axis=0), used[0]

    def score_matrices(
        self, study: Attributor, setting: Setting, asked: QuerySet, dampings: Sequence[float]
    ) -> list[Float[np.ndarray, "q n"]]:
        """See :class:`Method`."""
        free = self.damping is not None and setting.damping is None
        wanted: list[Any] = list(dampings) if free else [setting.damping]
        sides, vectors = self.sides(study, setting), self.query_vectors(study, setting, asked)
        totals: list[Any] = [0.0] * len(wanted)
        for side, matrix in zip(sides, vectors, strict=True):
            readout = study.readout(side)
            used = [readout.damping(damping) for damping in wanted]
            for i, scores in enumerate(readout.each(matrix, used, self.divided_by(setting), self.residual)):
                totals[i] = totals[i] + scores / len(sides)
        return totals

    def search(self, study: Attributor, setting: Setting, query: Query, features: Features, top: int) -> Search | None:
        """See :class:`Method`; the index covers only the feature sets it was built of, without a normaliser."""
        sides = self.sides(study, setting)
        if self.residual or len(sides) > 1 or self.divided_by(setting) != "none":
            return None
        (side,) = sides
        source = side.sources[0]
        indexed = source.config in study.folder.study.features and source.whole and len(side.sources) == 1
        if not indexed or side.dim != source.config.projection_dim:
            return None
        index = study.indexed(source.config)
        damping = study.readout(side).damping(self.wanted_damping(setting))
        q = index.searchable(study.of_query(source, features), damping)
        return Search.of(index, q, top, damping)


METHODS: tuple[Method, ...] = (
    GradientMethod(
        name="dtrak",
        title="D-TRAK",
        output=SQUARE,
        damping=0.316,
        formula="τ(x, n) = φ(x)ᵀ (ΦᵀΦ + λI)⁻¹ φₙ,  φ = P ∇_θ ‖ε_θ‖² / D",
        source=ZHENG,
    ),
    GradientMethod(
        name="trak",
        title="TRAK",
        output=LOSS,
        damping=3.16,
        formula="τ(x, n) = φ(x)ᵀ (ΦᵀΦ + λI)⁻¹ φₙ,  φ = P ∇_θ ‖ε_θ − ε‖² / D",
        source=PARK,
    ),
    GradientMethod(
        name="grad-dot",
        title="Gradient dot",
        output=LOSS,
        formula="τ(x, n) = φ(x)ᵀ φₙ,  φ of the loss",
        source="Charpiat et al., NeurIPS 2019",
    ),
    GradientMethod(
        name="grad-cos",
        title="Gradient cosine",
        output=LOSS,
        formula="τ(x, n) = φ(x)ᵀ φₙ / (‖φ(x)‖ ‖φₙ‖),  φ of the loss",
        source="Charpiat et al., NeurIPS 2019",
        normaliser="cosine",
    ),
    GradientMethod(
        name="relative-if",
        title="Relative IF",
        output=LOSS,
        damping=3.16,
        formula="τ(x, n) = φ(x)ᵀ (ΦᵀΦ + λI)⁻¹ φₙ / ‖(ΦᵀΦ + λI)⁻¹ φₙ‖,  φ of the loss",
        source="Barshan et al., AISTATS 2020",
        normaliser="influence",
    ),
    GradientMethod(
        name="renormalised-if",
        title="Renormalised IF",
        output=LOSS,
        damping=3.16,
        formula="τ(x, n) = φ(x)ᵀ (ΦᵀΦ + λI)⁻¹ φₙ / ‖φₙ‖,  φ of the loss",
        source="Hammoudeh & Lowd, CCS 2022",
        normaliser="norm",
    ),
)
DAS = GradientMethod(
    name="das",
    title="DAS",
    output="mean",
    damping=0.316,
    residual=True,
    formula="τ(x, n) = (φ(x)ᵀ (ΦᵀΦ + λI)⁻¹ φₙ · rₙ / (1 − φₙᵀ (ΦᵀΦ + λI)⁻¹ φₙ))²,  φ of mean(ε_θ), "
    "each timestep's gradient scaled to length 1, rₙ = meanₜ(eₙₜ / ‖eₙ‖), eₙₜ = √mean((ε_θ − ε)²)",
    source="Lin et al., ICLR 2025 (arXiv 2410.18639), gradients and residuals as in its code; unsigned",
    needs="features of its output function, with apart: true",
)
