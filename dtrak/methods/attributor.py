"""From an image to the training images it leans on: the one road that command line and pages take."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from dtrak.config import FeatureConfig
from dtrak.data import Record
from dtrak.gradients.extractor import FeatureExtractor, SampleFeature
from dtrak.index.faiss_index import QueryFeature
from dtrak.methods.base import METHODS, Method
from dtrak.methods.query import Query
from dtrak.methods.readout import Readout
from dtrak.methods.retrained import datamodel, empirical_influence
from dtrak.methods.selection import Side, Source
from dtrak.methods.settings import Setting
from dtrak.methods.similarity import Embedder, pixel_vectors, train_embeddings
from dtrak.methods.training_side import TrainingSide
from dtrak.models.base import DiffusionModel
from dtrak.models.sampling import GenerationSettings, trajectory
from dtrak.study.folder import StudyFolder
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import digest
from dtrak.utils.noise import keyed_generator

EXTRACTORS_KEPT = 8


@dataclass(frozen=True)
class Need:
    """A feature set that a query must have for a setting, the key under which it is kept, and how it is looked at."""

    config: FeatureConfig
    identity: dict[str, Any]
    trajectory: GenerationSettings | None = None

    @property
    def key(self) -> str:
        """The fingerprint of the query's feature."""
        return digest(self.identity)


Features = dict[str, QueryFeature]  # of one query, by their keys


@dataclass(frozen=True)
class Scored:
    """A training sample and its score."""

    record: Record
    score: float


@dataclass(frozen=True)
class Attribution:
    """The answer for one query.

    Attributes:
        damping: the λ that was used, of the first model where there are several; None without a kernel.
        fingerprint: of the feature sets behind it.
        proponents: highest scores, descending; only positive ones.
        opponents: lowest scores, ascending; only negative ones.
        scores: of every training sample, in row order.
    """

    setting: Setting
    damping: float | None
    fingerprint: str
    proponents: list[Scored]
    opponents: list[Scored]
    scores: Float[np.ndarray, " n"]

    @property
    def method(self) -> Method:
        """The setting's method."""
        return METHODS[self.setting.method]


class Attributor(TrainingSide):
    """A study opened for queries.

    Args:
        batch_size: timesteps per forward pass of a query.
    """

    def __init__(self, folder: StudyFolder, device: str = "cpu", batch_size: int = 16):
        super().__init__(folder, device)
        self._batch_size = batch_size
        self._extractors: dict[tuple[tuple[FeatureConfig, ...], bool], FeatureExtractor] = {}

    @cached_property
    def embedder(self) -> Embedder:
        """The image embedding of the study."""
        return Embedder(self.folder.study.embedding)

    def needs(self, setting: Setting, query: Query) -> list[Need]:
        """The features that the query must have for a setting; none for methods without gradients.

        Raises:
            DtrakError: the study lacks the features, or the query was not generated and the method follows
                the sampler's path.
        """
        method = METHODS[setting.method]
        if method.family != "gradient":
            return []
        configs = dict.fromkeys(source.config for side in self.sides(setting) for source in side.sources)
        if not method.trajectory:
            return [Need(config, self.identity(config.model_copy(update={"split": "train"}))) for config in configs]
        if query.settings is None:
            raise DtrakError(
                f"{method.title} follows the path along which an image was generated; this one was not generated here.",
                hint="Generate an image, or choose another method.",
            )
        config = next(iter(configs))
        config = config.model_copy(update={"apart": False, "noise_draws": 1, "first_draw": 0})
        content = {**self.identity(config), "trajectory": query.settings.as_dict(), "timesteps": "of the sampler"}
        return [Need(config, content, query.settings)]

    def features(self, query: Query, settings: Sequence[Setting] = (), by_block: bool = True) -> Features:
        """The query's features for some settings, by default for all methods of one model; the costly part.

        Args:
            by_block: also split the features that an index is built of by block of the network.
        """
        settings = settings or [Setting(m.name) for m in self.methods() if m.models == "one" and not m.trajectory]
        needs = {need.key: need for setting in settings for need in self.needs(setting, query)}
        return self.compute(query, list(needs.values()), by_block)

    def compute(self, query: Query, needs: Sequence[Need], by_block: bool = True) -> Features:
        """The named features of a query; those of one model share their passes."""
        found: Features = {}
        for model_name in dict.fromkeys(need.config.model for need in needs):
            model = self.variant(model_name)
            mine = [need for need in needs if need.config.model == model_name]
            latent = model.encode(query.pixels[None])[0]
            plain = [need for need in mine if need.trajectory is None]
            for blocks in (True, False):
                chosen = [n for n in plain if (by_block and n.config in self.folder.study.features) == blocks]
                if chosen:
                    extractor = self._extractor(model, tuple(need.config for need in chosen), blocks)
                    features = extractor(latent, query.id, query.label)
                    found |= {n.key: _of(f, n.identity) for n, f in zip(chosen, features, strict=True)}
            for need in mine:
                if need.trajectory is not None:
                    found[need.key] = self._along(model, need, query)
        return found

    def query_parts(self, side: Side, features: Features) -> Float[np.ndarray, "parts k"]:
        """The weighted parts of the query's feature, which sum to it; one row where they are not kept apart."""
        rows = []
        for source in side.sources:
            feature = self._of_query(source, features)
            weights = self._weights(source, lambda feature=feature: feature.values)  # type: ignore[misc]
            parts = np.atleast_2d(feature.parts)[:, : side.dim].astype(np.float64) * weights[:, None]
            rows.append(parts[np.array(source.weights) != 0] * self._rescale(source, side))
        return np.concatenate(rows)

    def query_vector(self, setting: Setting, side: Side, features: Features, query: Query) -> Float[np.ndarray, " k"]:
        """φ(x) under a setting, for one model.

        Raises:
            DtrakError: the feature was not computed.
        """
        if METHODS[setting.method].trajectory:
            need = self.needs(setting, query)[0]
            feature = _present(features, need.key)
            return feature.vector[: side.dim] * self._rescale(side.sources[0], side)
        if len(side.sources) == 1 and side.sources[0].whole and side.dim == side.sources[0].config.projection_dim:
            return self._of_query(side.sources[0], features).vector
        return self.query_parts(side, features).sum(0).astype(np.float32)

    def scores(
        self, setting: Setting, query: Query, features: Features
    ) -> tuple[Float[np.ndarray, " n"], float | None]:
        """The scores of all training images in float64, and the λ that was used; milliseconds, no gradient.

        Raises:
            DtrakError: something that the method needs is not built.
        """
        method = METHODS[setting.method]
        train = self.table.train_size
        if method.family == "random":
            return keyed_generator("random", 0, query.id).uniform(-1, 1, train), None
        if method.family == "truth":
            truth = self.subsets("fit")
            estimate = datamodel if method.name == "datamodel" else empirical_influence
            return estimate(truth.masks, truth.of(query.id)), None
        if method.family == "pixel":
            rows = pixel_vectors(np.asarray(self.table.pixels[:train]))
            return Readout(rows).scores(pixel_vectors(query.pixels[None])[0], normaliser=method.normaliser), None
        if method.family == "embedding":
            rows = train_embeddings(self.folder, lambda: self.embedder)
            return Readout(rows).scores(self.embedder(query.pixels[None])[0], normaliser=method.normaliser), None
        found, dampings = [], []
        for side in self.sides(setting):
            readout = self.readout(side)
            wanted = method.damping if setting.damping is None else setting.damping
            damping = readout.damping(wanted)
            vector = self.query_vector(setting, side, features, query)
            found.append(readout.scores(vector, damping, setting.normaliser or method.normaliser, method.residual))
            dampings.append(damping)
        return np.mean(found, axis=0), dampings[0]

    def attribute(
        self, query: Query, features: Features, setting: Setting | str = "dtrak", top: int = 10
    ) -> Attribution:
        """Proponents, opponents and all scores of a query; milliseconds, no gradient.

        Args:
            features: from :meth:`features`.
            setting: or the name of a method, for its defaults.
            top: how many proponents and opponents at most.
        """
        setting = Setting(setting) if isinstance(setting, str) else setting
        scores, damping = self.scores(setting, query, features)
        found = self._searched(setting, query, features, damping, top)
        if found is None:
            found = np.argsort(-scores, kind="stable")[:top], np.argsort(scores, kind="stable")[:top]

        def listed(sign: int, rows: np.ndarray) -> list[Scored]:
            ordered = sorted(rows.tolist(), key=lambda row: (-sign * scores[row], row))
            return [Scored(self.table.records[row], float(scores[row])) for row in ordered if sign * scores[row] > 0]

        return Attribution(
            setting, damping, self.fingerprint(setting), listed(1, found[0]), listed(-1, found[1]), scores
        )

    def _searched(
        self, setting: Setting, query: Query, features: Features, damping: float | None, top: int
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Both ends of the FAISS index where the setting is what it was built for, else None: rank all rows."""
        method = METHODS[setting.method]
        if method.family != "gradient" or method.models != "one" or method.trajectory or method.residual:
            return None
        (side,) = self.sides(setting)
        source = side.sources[0]
        normaliser = setting.normaliser or method.normaliser
        indexed = source.config in self.folder.study.features and source.whole and len(side.sources) == 1
        if not indexed or side.dim != source.config.projection_dim or normaliser != "none":
            return None  # a row normaliser changes the order, which an index of raw rows cannot know
        index = self._index(source.config)
        return index.both_ends(index.searchable(self._of_query(source, features), damping), top)

    def _of_query(self, source: Source, features: Features) -> QueryFeature:
        return _present(features, self.fingerprint_of(source.config.model_copy(update={"split": "train"})))

    def _along(self, model: DiffusionModel, need: Need, query: Query) -> QueryFeature:
        assert need.trajectory is not None
        images, timesteps = trajectory(self.model, need.trajectory)
        extractor = FeatureExtractor(model, [need.config], self._batch_size, timesteps=timesteps)
        return _of(extractor(images, query.id, query.label)[0], need.identity)

    def _extractor(self, model: DiffusionModel, configs: tuple[FeatureConfig, ...], by_block: bool) -> FeatureExtractor:
        key = configs, by_block
        if key not in self._extractors:
            if len(self._extractors) >= EXTRACTORS_KEPT:
                self._extractors.clear()
            self._extractors[key] = FeatureExtractor(model, configs, self._batch_size, by_block)
        return self._extractors[key]


def _of(feature: SampleFeature, content: dict[str, Any]) -> QueryFeature:
    return QueryFeature(feature.parts, content, feature.values, feature.blocks)


def _present(features: Features, key: str) -> QueryFeature:
    if key not in features:
        raise DtrakError(
            "The query's feature was not computed under this setting, or under another fingerprint.",
            hint="Compute the query's features again.",
        )
    return features[key]


def as_json(study: str, query: dict[str, Any], attribution: Attribution, measured: str = "") -> dict[str, Any]:
    """An attribution as plain data; scores to six significant digits.

    Args:
        measured: the setting's measured reliability, in words.
    """

    def entry(scored: Scored) -> dict[str, Any]:
        record = scored.record
        return {
            "id": record.id,
            "score": float(f"{scored.score:.6g}"),
            "label": record.label,
            "caption": record.caption,
            "creator": record.creator,
            "licence": record.licence,
        }

    return {
        "study": study,
        "query": query,
        "method": attribution.method.name,
        "setting": attribution.setting.text,
        "damping": attribution.damping,
        "fingerprint": attribution.fingerprint,
        "measured": measured,
        "proponents": [entry(s) for s in attribution.proponents],
        "opponents": [entry(s) for s in attribution.opponents],
    }
