"""From a query image to a ranking of the training images, for the command line, the pages and Python."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from dtrak.config import FeatureConfig
from dtrak.gradients.extractor import FeatureExtractor, SampleFeature
from dtrak.gradients.narrow import narrowed
from dtrak.index.faiss_index import QueryFeature
from dtrak.index.store import unit_rows
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
LARGEST = 1e20  # no plausible score is larger
Features = dict[str, QueryFeature]  # features of one query, by ``Need.key``


class Attributor(TrainingSide):
    """A study opened for queries.

    Args:
        device: where to compute, such as "cpu" or "cuda".
        batch_size: (timestep, draw) pairs per forward pass of a query.
    """

    def __init__(self, folder: StudyFolder, device: str = "cpu", batch_size: int = 16):
        super().__init__(folder, device)
        self.batch_size = batch_size
        self._extractors = Latest[FeatureExtractor](EXTRACTORS_KEPT)

    @cached_property
    def embedder(self) -> Embedder:
        """The study's image embedding."""
        return Embedder(self.folder.study.embedding_source)

    def needs(self, setting: Setting, query: Query) -> list[Need]:
        """The query features that a setting needs; none for methods without features.

        Raises:
            DtrakError: the study lacks the feature sets, or the query does not suit the method.
        """
        self._check_region(setting, query)
        return METHODS[setting.method].query_needs(self, setting, query)

    def features(self, query: Query, settings: Sequence[Setting] = (), by_block: bool = True) -> Features:
        """Compute the query's features for some settings; the expensive step, which takes gradients.

        Args:
            settings: default all available gradient methods that use a single model and few passes.
            by_block: also split the index's features by block of the network.

        Raises:
            DtrakError: the study lacks the feature sets, or the query does not suit a method.
        """
        settings = settings or [
            Setting(m.name) for m in self.methods() if isinstance(m, GradientMethod) and m.one_model and m.light
        ]
        needs = {need.key: need for setting in settings for need in self.needs(setting, query)}
        return self.compute(query, list(needs.values()), by_block)

    def compute(self, query: Query, needs: Sequence[Need], by_block: bool = True) -> Features:
        """Compute the needed features of a query; features of one model share forward passes."""
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
                    features = extractor(latent, query.id, query.label, query.region)
                    for need, feature in zip(chosen, features, strict=True):
                        found[need.key] = self.as_query_feature(feature, need.identity)
            for need in mine:
                if need.make is not None:
                    found[need.key] = need.make(self, query)
        return found

    def query_parts(self, side: Side, features: Features) -> Float[np.ndarray, "parts k"]:
        """The weighted (timestep, draw) parts of the query's feature, which sum to it.

        A single row if they are not stored separately.
        """
        rows = []
        for source in side.sources:
            feature = self.of_query(source, features)
            weights = self._weights(source, lambda feature=feature: feature.values)
            parts = np.atleast_2d(feature.parts).astype(np.float64)
            parts = (unit_rows(parts) if source.unit else parts) * weights[:, None]
            rows.append(narrowed(parts[np.array(source.weights) != 0], side.dim, source.config.projection))
        return np.concatenate(rows)

    def scores(
        self, setting: Setting, query: Query, features: Features
    ) -> tuple[Float[np.ndarray, " n"], float | None]:
        """The scores of all training images in float64, and the λ used; takes milliseconds.

        Raises:
            DtrakError: features or models that the method needs are missing.
        """
        self._check_region(setting, query)
        scores, damping = METHODS[setting.method].scores(self, setting, query, features)
        self._check_plausible(scores)
        return scores, damping

    def _check_plausible(self, scores: Float[np.ndarray, " some"]) -> None:
        if not np.abs(scores).max(initial=0) < LARGEST:  # also false for NaN
            raise DtrakError(
                "The scores are not finite, or too large to be right: a file of the study is damaged.",
                hint=f"python -m index_builder verify {self.folder.study.name} --repair, then build again.",
            )

    @staticmethod
    def _check_region(setting: Setting, query: Query) -> None:
        method = METHODS[setting.method]
        if query.region is not None and not method.regional:
            raise DtrakError(f"{method.title} cannot be asked about a part of an image.", hint="Choose D-TRAK or TRAK.")

    def attribute(
        self,
        query: Query,
        features: Features,
        setting: Setting | str = "dtrak",
        top: int = 10,
        exhaustive: bool = False,
    ) -> Ranking:
        """Rank the training samples for a query; takes milliseconds.

        Both ends come from the index where it covers the setting; all scores are then computed when they are asked
        for.

        Args:
            features: from :meth:`features`.
            setting: a setting, or a method's name for its defaults.
            top: maximum number of proponents and of opponents.
            exhaustive: score all training samples instead of searching.

        Raises:
            DtrakError: features or models that the method needs are missing.
        """
        setting = Setting(setting) if isinstance(setting, str) else setting
        self._check_region(setting, query)
        method = METHODS[setting.method]
        found = None if exhaustive else method.search(self, setting, query, features, top)
        if found is None:
            scores, damping = self.scores(setting, query, features)
            return Ranking(setting, damping, self.fingerprint(setting), self.table, scores, top)
        self._check_plausible(np.concatenate(found.scores))
        return Ranking(
            setting,
            found.damping,
            self.fingerprint(setting),
            self.table,
            lambda: self.scores(setting, query, features)[0],
            top,
            search=found,
        )

    def of_query(self, source: Source, features: Features) -> QueryFeature:
        """The query's feature that matches a stored feature set.

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
                "The query's feature was not computed for this setting, or has another fingerprint.",
                hint="Recompute the query's features.",
            )
        return features[key]

    @staticmethod
    def as_query_feature(feature: SampleFeature, identity: dict[str, Any]) -> QueryFeature:
        """A computed feature together with its identity."""
        return QueryFeature(feature.parts, identity, feature.values, feature.blocks)

    def _extractor(self, model: DiffusionModel, configs: tuple[FeatureConfig, ...], by_block: bool) -> FeatureExtractor:
        return self._extractors.of(
            (configs, by_block), lambda: FeatureExtractor(model, configs, self.batch_size, by_block)
        )
