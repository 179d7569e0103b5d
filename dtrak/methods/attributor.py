"""From an image to the training images it leans on: the one road that command line and pages take."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from dtrak.config import FeatureConfig
from dtrak.gradients.extractor import FeatureExtractor, SampleFeature
from dtrak.index.faiss_index import QueryFeature
from dtrak.methods.base import Need
from dtrak.methods.embeddings import Embedder
from dtrak.methods.influence import GradientMethod
from dtrak.methods.query import Query
from dtrak.methods.ranking import Ranking
from dtrak.methods.registry import METHODS
from dtrak.methods.selection import Side, Source
from dtrak.methods.settings import Setting
from dtrak.methods.training_side import TrainingSide
from dtrak.models.base import DiffusionModel
from dtrak.study.folder import StudyFolder
from dtrak.utils.errors import DtrakError
from dtrak.utils.latest import Latest

EXTRACTORS_KEPT = 8
Features = dict[str, QueryFeature]  # of one query, by the keys of their needs


class Attributor(TrainingSide):
    """A study opened for queries.

    Args:
        batch_size: timesteps per forward pass of a query.
    """

    def __init__(self, folder: StudyFolder, device: str = "cpu", batch_size: int = 16):
        super().__init__(folder, device)
        self.batch_size = batch_size
        self._extractors = Latest[FeatureExtractor](EXTRACTORS_KEPT)

    @cached_property
    def embedder(self) -> Embedder:
        """The image embedding of the study."""
        return Embedder(self.folder.study.embedding)

    def needs(self, setting: Setting, query: Query) -> list[Need]:
        """The features that the query must have for a setting; none for methods without features.

        Raises:
            DtrakError: the study lacks them, or the query cannot have them.
        """
        return METHODS[setting.method].query_needs(self, setting, query)

    def features(self, query: Query, settings: Sequence[Setting] = (), by_block: bool = True) -> Features:
        """The query's features for some settings, by default for all methods of one model; the costly part.

        Args:
            by_block: also split the features that an index is built of by block of the network.
        """
        settings = settings or [
            Setting(m.name) for m in self.methods() if isinstance(m, GradientMethod) and m.one_model and m.light
        ]
        needs = {need.key: need for setting in settings for need in self.needs(setting, query)}
        return self.compute(query, list(needs.values()), by_block)

    def compute(self, query: Query, needs: Sequence[Need], by_block: bool = True) -> Features:
        """The named features of a query; those of one model share their passes."""
        found: Features = {}
        for model_name in dict.fromkeys(need.config.model for need in needs):
            model = self.variant(model_name)
            mine = [need for need in needs if need.config.model == model_name]
            latent = model.encode(query.pixels[None])[0]
            plain = [need for need in mine if need.make is None]
            for blocks in (True, False):
                chosen = [n for n in plain if (by_block and n.config in self.folder.study.features) == blocks]
                if chosen:
                    extractor = self._extractor(model, tuple(need.config for need in chosen), blocks)
                    features = extractor(latent, query.id, query.label)
                    for need, feature in zip(chosen, features, strict=True):
                        found[need.key] = self.as_query_feature(feature, need.identity)
            for need in mine:
                if need.make is not None:
                    found[need.key] = need.make(self, query)
        return found

    def query_parts(self, side: Side, features: Features) -> Float[np.ndarray, "parts k"]:
        """The weighted parts of the query's feature, which sum to it; one row where they are not kept apart."""
        rows = []
        for source in side.sources:
            feature = self.of_query(source, features)
            weights = self._weights(source, lambda feature=feature: feature.values)  # type: ignore[misc]
            parts = np.atleast_2d(feature.parts)[:, : side.dim].astype(np.float64) * weights[:, None]
            rows.append(parts[np.array(source.weights) != 0] * self.rescale(source, side))
        return np.concatenate(rows)

    def scores(
        self, setting: Setting, query: Query, features: Features
    ) -> tuple[Float[np.ndarray, " n"], float | None]:
        """The scores of all training images in float64, and the λ that was used; milliseconds, no gradient.

        Raises:
            DtrakError: something that the method needs is not built.
        """
        return METHODS[setting.method].scores(self, setting, query, features)

    def attribute(self, query: Query, features: Features, setting: Setting | str = "dtrak", top: int = 10) -> Ranking:
        """The ranking of all training samples for a query; milliseconds, no gradient.

        Args:
            features: from :meth:`features`.
            setting: or the name of a method, for its defaults.
            top: how many proponents and opponents at most.
        """
        setting = Setting(setting) if isinstance(setting, str) else setting
        scores, damping = self.scores(setting, query, features)
        ends = METHODS[setting.method].ends(self, setting, query, features, damping, top)
        return Ranking(setting, damping, self.fingerprint(setting), self.table, scores, top, ends=ends)

    def of_query(self, source: Source, features: Features) -> QueryFeature:
        """The query's feature of a stored set.

        Raises:
            DtrakError: it was not computed.
        """
        return self.present(features, self.fingerprint_of(source.config.model_copy(update={"split": "train"})))

    @staticmethod
    def present(features: Features, key: str) -> QueryFeature:
        """A feature by its key.

        Raises:
            DtrakError: it was not computed.
        """
        if key not in features:
            raise DtrakError(
                "The query's feature was not computed under this setting, or under another fingerprint.",
                hint="Compute the query's features again.",
            )
        return features[key]

    @staticmethod
    def as_query_feature(feature: SampleFeature, identity: dict[str, Any]) -> QueryFeature:
        """A computed feature with what its numbers depend on."""
        return QueryFeature(feature.parts, identity, feature.values, feature.blocks)

    def _extractor(self, model: DiffusionModel, configs: tuple[FeatureConfig, ...], by_block: bool) -> FeatureExtractor:
        return self._extractors.of(
            (configs, by_block), lambda: FeatureExtractor(model, configs, self.batch_size, by_block)
        )
