"""From an image to the training images it leans on: the one road that command line and pages take."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from dtrak.config import LAST, FeatureConfig
from dtrak.data import Record, Table
from dtrak.errors import DtrakError
from dtrak.features import FeatureExtractor, SampleFeature, identity
from dtrak.files import digest
from dtrak.gradients import elbo_weights
from dtrak.index import AttributionIndex, QueryFeature
from dtrak.methods import METHODS, Method, get_method
from dtrak.models import DiffusionModel
from dtrak.noise import keyed_generator
from dtrak.readout import Readout
from dtrak.sampling import GenerationSettings, trajectory
from dtrak.selection import Side, Source, part_weights, select
from dtrak.settings import Setting
from dtrak.similarity import Embedder, pixel_vectors, train_embeddings
from dtrak.store import FeatureStore
from dtrak.studies import StudyFolder, load_study_model, model_variants
from dtrak.truth import datamodel, empirical_influence, load_subsets

READOUTS_KEPT = 8


@dataclass(frozen=True)
class Query:
    """An image to attribute.

    Attributes:
        pixels: as the model sees it.
        label: the class to condition on, or None for any.
        settings: what it was generated from, or None for an image from elsewhere.
    """

    pixels: UInt8[np.ndarray, "r r 3"]
    label: str | None = None
    settings: GenerationSettings | None = None

    @cached_property
    def id(self) -> str:
        """Keys the noise of the query's feature: the same pixels always meet the same noise."""
        return "query:" + hashlib.sha256(np.ascontiguousarray(self.pixels).tobytes()).hexdigest()[:32]


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


class Attributor:
    """A study opened for queries: its models, its table and its stores, each loaded when first needed.

    Args:
        batch_size: timesteps per forward pass of a query.
    """

    def __init__(self, folder: StudyFolder, device: str = "cpu", batch_size: int = 16):
        self.folder, self.device, self._batch_size = folder, device, batch_size
        self._models: dict[str, DiffusionModel] = {}
        self._fingerprints: dict[str, str] = {}
        self._identities: dict[FeatureConfig, tuple[dict[str, Any], str]] = {}
        self._stores: dict[str, FeatureStore] = {}
        self._indexes: dict[str, AttributionIndex] = {}
        self._extractors: dict[tuple[tuple[FeatureConfig, ...], bool], FeatureExtractor] = {}
        self._readouts: OrderedDict[tuple[str, str], Readout] = OrderedDict()

    @property
    def model(self) -> DiffusionModel:
        """The model that draws."""
        return self.variant(LAST)

    @cached_property
    def table(self) -> Table:
        return self.folder.table

    @cached_property
    def variants(self) -> dict[str, str]:
        """The study's models by name, and whether each is the "last", a "checkpoint" or a "member"."""
        return {name: variant.kind for name, variant in model_variants(self.folder).items()}

    @cached_property
    def embedder(self) -> Embedder:
        """The image embedding of the study."""
        return Embedder(self.folder.study.embedding)

    def variant(self, name: str) -> DiffusionModel:
        """One of the study's models."""
        if name not in self._models:
            self._models[name] = load_study_model(self.folder, self.device, name)
        return self._models[name]

    def identity(self, config: FeatureConfig) -> dict[str, Any]:
        """What a feature set depends on, now."""
        if config not in self._identities:
            if config.model not in self._fingerprints:
                self._fingerprints[config.model] = self.variant(config.model).fingerprint()
            content = identity(self._fingerprints[config.model], self.table.fingerprint(), config)
            self._identities[config] = content, digest(content)
        return self._identities[config][0]

    def fingerprint_of(self, config: FeatureConfig) -> str:
        """The digest of :meth:`identity`."""
        self.identity(config)
        return self._identities[config][1]

    def store(self, config: FeatureConfig) -> FeatureStore:
        """The complete store of a feature set.

        Raises:
            DtrakError: it is not built, or only in part.
        """
        fingerprint = self.fingerprint_of(config)
        if fingerprint in self._stores:
            return self._stores[fingerprint]
        folder = self.folder.features / fingerprint
        hint = f"python -m index_builder build {self.folder.study.name}"
        if not (folder / "manifest.json").exists():
            if config in self.folder.study.features:
                self._refuse(config)
            raise DtrakError(f"The features '{config.output}' of '{config.model}' are not built yet.", hint=hint)
        store = FeatureStore.open(folder)
        if missing := store.missing():
            done = len(store.shards) - len(missing)
            raise DtrakError(
                f"The features '{config.output}' of '{config.model}' are being built: {done} of "
                f"{len(store.shards)} shards are there.",
                hint=f"Wait for the build to end, or resume it: {hint}",
            )
        self._stores[fingerprint] = store
        return store

    def methods(self) -> list[Method]:
        """The methods that this study can answer by now."""
        return [method for method in METHODS.values() if self.why_not(method.name) is None]

    def why_not(self, method: str) -> DtrakError | None:
        """What a method lacks in this study, or None; a query may lack more (see :meth:`needs`)."""
        try:
            setting = Setting(method)
            if METHODS[method].family == "gradient":
                for side in self.sides(setting):
                    for source in side.sources:
                        self.store(source.config)
            elif METHODS[method].family == "truth":
                load_subsets(self.folder, "fit")
        except DtrakError as reason:
            return reason
        return None

    def models_of(self, setting: Setting) -> list[str]:
        """The models whose scores are averaged."""
        kind = METHODS[setting.method].models
        if kind == "one":
            return [setting.checkpoint]
        members = [name for name, of in self.variants.items() if of == "member"]
        if kind == "ensemble":
            if not members:
                raise DtrakError(
                    f"Study '{self.folder.study.name}' has no ensemble.",
                    hint=f"python -m index_builder train {self.folder.study.name} --member 1, "
                    "then list its features under ablations.",
                )
            return [LAST, *members]
        checkpoints = [name for name, of in self.variants.items() if of == "checkpoint"]
        if not checkpoints:
            raise DtrakError(
                f"Study '{self.folder.study.name}' has no earlier checkpoints.",
                hint="Name some under model.checkpoints.",
            )
        return [*checkpoints, LAST]

    def sides(self, setting: Setting, split: str = "train") -> list[Side]:
        """The stored features behind a setting, one a model.

        Raises:
            DtrakError: the study does not list them.
        """
        output = setting.output or METHODS[setting.method].output
        models = self.models_of(setting)
        if len(models) > 1 and setting.timesteps is None:  # all models are looked at alike
            alone = [select(self.folder.study, setting, output, model, split) for model in models]
            setting = setting.with_(timesteps=min(len(side.pairs) for side in alone) // setting.draws)
        found = [select(self.folder.study, setting, output, model, split) for model in models]
        if METHODS[setting.method].trajectory and any(source.derived for side in found for source in side.sources):
            raise DtrakError(
                f"'{output}' along the sampler's path is not stored.", hint="Choose another output function."
            )
        return found

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

    def readout(self, side: Side) -> Readout:
        """The training features of one model under a setting; the latest few are kept."""
        key = digest([[self.fingerprint_of(s.config), s.weights, s.derived] for s in side.sources]), str(side.dim)
        if key not in self._readouts:
            self._readouts[key] = self._read(side)
            while len(self._readouts) > READOUTS_KEPT:
                self._readouts.popitem(last=False)
        self._readouts.move_to_end(key)
        return self._readouts[key]

    def heldout(self, side: Side) -> Float[np.ndarray, "q k"]:
        """The features of the held-out images under the same selection.

        Args:
            side: of the split "heldout".
        """
        return self._sum(side)

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

    def index(self, method: str | Method) -> AttributionIndex:
        """The index that the method searches under its defaults.

        Raises:
            DtrakError: it is not built, or was built under another fingerprint: the fields are named.
        """
        method = get_method(method) if isinstance(method, str) else method
        side = self.sides(Setting(method.name))[-1]
        return self._index(side.sources[0].config)

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
            truth = load_subsets(self.folder, "fit")
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
        search = self._searcher(setting, query, features, damping)

        def found(sign: int) -> list[Scored]:
            rows = search(sign, top) if search else np.argsort(-sign * scores, kind="stable")[:top]
            ordered = sorted(rows.tolist(), key=lambda row: (-sign * scores[row], row))
            return [Scored(self.table.records[row], float(scores[row])) for row in ordered if sign * scores[row] > 0]

        return Attribution(setting, damping, self.fingerprint(setting), found(1), found(-1), scores)

    def fingerprint(self, setting: Setting) -> str:
        """Of the feature sets behind a setting; of the data alone for methods without gradients."""
        if METHODS[setting.method].family != "gradient":
            return self.table.fingerprint()
        sources = [source for side in self.sides(setting) for source in side.sources]
        known = [self.fingerprint_of(source.config) for source in sources]
        return known[0] if len(known) == 1 and sources[0].whole else digest([known, setting.text])

    def _searcher(self, setting: Setting, query: Query, features: Features, damping: float | None) -> Any:
        """A search of the FAISS index where the setting is what it was built for, else None: rank all rows."""
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
        q = index.searchable(self._of_query(source, features), damping)
        return lambda sign, top: index.search(sign * q, top)[0]

    def _index(self, config: FeatureConfig) -> AttributionIndex:
        fingerprint = self.fingerprint_of(config)
        if fingerprint not in self._indexes:
            folder = self.folder.index / fingerprint
            if not (folder / "manifest.json").exists():
                self._refuse(config)
            self._indexes[fingerprint] = AttributionIndex(folder, self.store(config))
        return self._indexes[fingerprint]

    def _read(self, side: Side) -> Readout:
        source = side.sources[0]
        if len(side.sources) == 1 and source.whole and side.dim == source.config.projection_dim:
            values = self.store(source.config).values()
            residuals = np.sqrt(values[..., 0].mean(1)) if values.shape[1] else None
            if source.config in self.folder.study.features:
                index = self._index(source.config)
                return Readout(index.features, residuals, index.kernel)
            return Readout(self.store(source.config).read(), residuals)
        squares = np.zeros(self.table.train_size)
        for s in side.sources:
            values = self.store(s.config).values()[..., 0]
            squares += values @ np.array(s.weights) if s.config.apart else values.mean(1)
        return Readout(self._sum(side), np.sqrt(squares))

    def _sum(self, side: Side) -> Float[np.ndarray, "n k"]:
        total: Any = 0.0
        for source in side.sources:
            store = self.store(source.config)
            weights = self._weights(source, store.values)
            total = total + store.weighted(weights, side.dim) * self._rescale(source, side)
        return total

    def _weights(self, source: Source, values: Any) -> Float[np.ndarray, "*n parts"]:
        size = int(np.prod(self.model.latent_shape))

        def elbo(timesteps: list[int]) -> np.ndarray:
            return elbo_weights(self.model, torch.tensor(timesteps, device=self.model.device)).double().cpu().numpy()

        return part_weights(source, values, size, elbo)

    @staticmethod
    def _rescale(source: Source, side: Side) -> np.float32:
        """The first k' of k columns, rescaled, keep inner products in expectation."""
        return np.float32(np.sqrt(source.config.projection_dim / side.dim))

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
            if len(self._extractors) >= READOUTS_KEPT:
                self._extractors.clear()
            self._extractors[key] = FeatureExtractor(model, configs, self._batch_size, by_block)
        return self._extractors[key]

    def _refuse(self, config: FeatureConfig) -> None:
        name, wanted = self.folder.study.name, self.identity(config)
        hint = f"python -m index_builder build {name}"
        for path in sorted(self.folder.features.glob("*/manifest.json")):
            built = FeatureStore.open(path.parent).identity
            if built["output"] == config.output and built.get("split") == config.split:
                differing = [key for key in wanted if wanted[key] != built.get(key)]
                if differing:
                    raise DtrakError(
                        f"The index of study '{name}' was built under another fingerprint: "
                        f"{', '.join(differing)} changed since.",
                        hint=hint,
                    )
        raise DtrakError(f"The index of study '{name}' is not built.", hint=hint)


def _of(feature: SampleFeature, content: dict[str, Any]) -> QueryFeature:
    return QueryFeature(feature.parts, content, feature.values, feature.blocks)


def _present(features: Features, key: str) -> QueryFeature:
    if key not in features:
        raise DtrakError(
            "The query's feature was not computed under this setting, or under another fingerprint.",
            hint="Compute the query's features again.",
        )
    return features[key]


def as_json(study: str, query: dict[str, Any], attribution: Attribution) -> dict[str, Any]:
    """An attribution as plain data; scores to six significant digits."""

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
        "proponents": [entry(s) for s in attribution.proponents],
        "opponents": [entry(s) for s in attribution.opponents],
    }
