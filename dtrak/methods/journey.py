"""Journey-TRAK: the query is looked at along the path by which it was sampled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dtrak.config import Split
from dtrak.methods.base import LOSS, Features, Method, Need
from dtrak.methods.influence import FEATURE_CHOICES, GradientMethod
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import digest, write_npy

if TYPE_CHECKING:
    from jaxtyping import Float

    from dtrak.config import FeatureConfig
    from dtrak.index.faiss_index import QueryFeature
    from dtrak.methods.attributor import Attributor
    from dtrak.methods.query import Query, QuerySet
    from dtrak.methods.selection import Side
    from dtrak.methods.settings import Setting
    from dtrak.methods.training_side import TrainingSide
    from dtrak.models.sampling import GenerationSettings


@dataclass(frozen=True, kw_only=True)
class TrajectoryMethod(GradientMethod):
    """The query's feature is the mean over the sampler's steps, at x̂₀ as predicted at each."""

    needs: str = "features of the loss; a query generated here"
    choices: ClassVar[frozenset[str]] = FEATURE_CHOICES | {"checkpoint"}
    generated_only: ClassVar[bool] = True
    light: ClassVar[bool] = False

    @property
    def splits(self) -> bool:  # type: ignore[override]
        """The query's timesteps are not those of the training side."""
        return False

    def sides(self, study: TrainingSide, setting: Setting, split: Split = "train") -> list[Side]:
        """See :class:`Method`."""
        found = super().sides(study, setting, split)
        if any(source.derived for side in found for source in side.sources):
            output = setting.output or self.output
            raise DtrakError(
                f"'{output}' along the sampler's path is not stored.", hint="Choose another output function."
            )
        return found

    def query_needs(self, study: Attributor, setting: Setting, query: Query) -> list[Need]:
        """See :class:`Method`."""
        if query.settings is None:
            raise DtrakError(
                f"{self.title} follows the path along which an image was generated; this one was not generated here.",
                hint="Generate an image, or choose another method.",
            )
        config = self.sides(study, setting)[0].sources[0].config
        config = config.model_copy(update={"apart": False, "noise_draws": 1, "first_draw": 0})
        content = {**study.identity(config), "trajectory": query.settings.as_dict(), "timesteps": "of the sampler"}
        return [Need(config, content, partial(_along, config, content, query.settings))]

    def query_vector(
        self, study: Attributor, setting: Setting, side: Side, features: Features, query: Query
    ) -> Float[np.ndarray, " k"]:
        """See :class:`GradientMethod`."""
        feature = study.present(features, self.query_needs(study, setting, query)[0].key)
        return feature.vector[: side.dim] * study.rescale(side.sources[0], side)

    def query_vectors(self, study: Attributor, setting: Setting, asked: QuerySet) -> list[Float[np.ndarray, "q k"]]:
        """Zero for queries that were not generated; a pass a sampler's step, so each is kept on disk."""
        (side,) = self.sides(study, setting)
        path = study.folder.root / "truth" / "paths"
        rows = np.zeros((len(asked.queries), side.dim), np.float32)
        for place, query in enumerate(asked.queries):
            if query.settings is None:
                continue
            kept = path / f"{digest([need.key for need in self.query_needs(study, setting, query)])}.npy"
            if not kept.exists():
                features = study.features(query, [setting], by_block=False)
                write_npy(kept, self.query_vector(study, setting, side, features, query))
            rows[place] = np.load(kept)
        return [rows]

    def ends(self, *_: Any) -> None:
        """The index is searched by the features it was built of."""
        return None


def _along(
    config: FeatureConfig, identity: dict[str, Any], settings: GenerationSettings, study: Attributor, query: Query
) -> QueryFeature:
    from dtrak.gradients.extractor import FeatureExtractor
    from dtrak.models.sampling import trajectory

    images, timesteps = trajectory(study.model, settings)
    extractor = FeatureExtractor(study.variant(config.model), [config], study.batch_size, timesteps=timesteps)
    return study.as_query_feature(extractor(images, query.id, query.label)[0], identity)


METHODS: tuple[Method, ...] = (
    TrajectoryMethod(
        name="journey-trak",
        title="Journey-TRAK",
        output=LOSS,
        damping=3.16,
        formula="as TRAK, φ(x) the mean over the sampler's steps t of P ∇_θ ‖ε_θ(√ᾱ_t x̂₀ + √(1−ᾱ_t) ε) − ε‖² / D",
        source="Georgiev et al., 2023 (arXiv 2312.06205)",
    ),
)
