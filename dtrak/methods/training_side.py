"""The training side of a study: its models, feature stores and indexes, and Φ with its kernel for any setting."""

from collections.abc import Callable
from functools import cache, cached_property, partial
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float

from dtrak.config import LAST, FeatureConfig, Split
from dtrak.data import Table
from dtrak.gradients.extractor import identity
from dtrak.index.faiss_index import AttributionIndex
from dtrak.index.store import FeatureStore, index_is_built, unit_rows
from dtrak.methods.base import Method
from dtrak.methods.query import data_fingerprint
from dtrak.methods.readout import Readout
from dtrak.methods.registry import METHODS, get_method
from dtrak.methods.selection import Side, Source, part_weights
from dtrak.methods.settings import Setting
from dtrak.methods.subsets import Family, SubsetTruth, load_subsets
from dtrak.models.base import DiffusionModel
from dtrak.models.loading import load_study_model
from dtrak.study.folder import StudyFolder, model_variants
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import digest
from dtrak.utils.latest import Latest

KEPT = 8
T = TypeVar("T")


class TrainingSide:
    """A study opened for reading; models, table and stores are loaded when first needed.

    Args:
        device: where to compute, such as "cpu" or "cuda".
    """

    def __init__(self, folder: StudyFolder, device: str = "cpu"):
        self.folder, self.device = folder, device
        self._models: dict[str, DiffusionModel] = {}
        self._fingerprints: dict[str, str] = {}
        self._identities: dict[FeatureConfig, tuple[dict[str, Any], str]] = {}
        self._stores: dict[str, FeatureStore] = {}
        self._indexes: dict[str, AttributionIndex] = {}
        self._readouts, self._queries = Latest[Readout](KEPT), Latest[np.ndarray](KEPT)
        self._subsets: dict[Family, SubsetTruth] = {}
        self._kept: dict[str, Any] = {}

    @property
    def model(self) -> DiffusionModel:
        """The study's own model, the last checkpoint."""
        return self.variant(LAST)

    @cached_property
    def table(self) -> Table:
        return self.folder.table

    @cached_property
    def variants(self) -> dict[str, str]:
        """The kind of each of the study's models by name: "last", "checkpoint" or "member"."""
        return {name: variant.kind for name, variant in model_variants(self.folder).items()}

    def variant(self, name: str) -> DiffusionModel:
        """One of the study's models by name.

        Raises:
            DtrakError: the study has no such model, or it is not trained yet.
        """
        if name not in self._models:
            self._models[name] = load_study_model(self.folder, self.device, name)
        return self._models[name]

    def model_fingerprint(self, name: str) -> str:
        """The fingerprint of one of the study's models; hashed once."""
        if name not in self._fingerprints:
            self._fingerprints[name] = self.variant(name).fingerprint()
        return self._fingerprints[name]

    @cached_property
    def data_fingerprint(self) -> str:
        """The fingerprint of the training rows."""
        return self.table.fingerprint()

    def kept(self, key: str, make: Callable[[], T]) -> T:
        """Something that a method loads once for all queries."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def identity(self, config: FeatureConfig) -> dict[str, Any]:
        """Everything a feature set depends on, for the present model and data."""
        if config not in self._identities:
            content = identity(
                self.model_fingerprint(config.model), data_fingerprint(self.folder, config.split), config
            )
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
                f"The features '{config.output}' of '{config.model}' are incomplete: {done} of "
                f"{len(store.shards)} shards are built.",
                hint=f"Wait for the running build to finish, or resume it: {hint}",
            )
        self._stores[fingerprint] = store
        return store

    def subsets(self, family: Family) -> SubsetTruth:
        """The finished subset models of one family, cached.

        Raises:
            DtrakError: there are none for the present data, recipe and queries.
        """
        if family not in self._subsets:
            self._subsets[family] = load_subsets(self.folder, family)
        return self._subsets[family]

    def methods(self) -> list[Method]:
        """The methods that are available for this study."""
        return [method for method in METHODS.values() if self.why_not(method.name) is None]

    def why_not(self, method: str) -> DtrakError | None:
        """Why a method is not available for this study; None if it is. A query may need more (see :class:`Need`)."""
        try:
            METHODS[method].require(self)
        except DtrakError as reason:
            return reason
        return None

    def sides(self, setting: Setting, split: Split = "train") -> list[Side]:
        """The stored features that a setting uses, one :class:`Side` per model; none for methods without features.

        Raises:
            DtrakError: the study does not list the feature sets.
        """
        return METHODS[setting.method].sides(self, setting, split)

    def readout(self, side: Side) -> Readout:
        """The training features of one model under a setting; the latest few are cached.

        Raises:
            DtrakError: the features or the index are not built.
        """
        return self._readouts.of(self._key(side), lambda: self._read(side))

    def queries(self, side: Side) -> Float[np.ndarray, "q k"]:
        """The features of held-out images or evaluation queries; the latest few are cached.

        Args:
            side: of any split but "train".

        Raises:
            DtrakError: the features are not built.
        """
        return self._queries.of(self._key(side), lambda: self._sum(side))

    def index(self, method: str | Method) -> AttributionIndex:
        """The index that the method searches at its defaults.

        Raises:
            DtrakError: it is not built, or has another fingerprint; the message names the changed fields.
        """
        method = get_method(method) if isinstance(method, str) else method
        side = self.sides(Setting(method.name))[-1]
        return self.indexed(side.sources[0].config)

    def fingerprint(self, setting: Setting) -> str:
        """The fingerprint of the feature sets that a setting uses; of the data for methods without features."""
        sources = [source for side in self.sides(setting) for source in side.sources]
        if not sources:
            return self.table.fingerprint()
        known = [self.fingerprint_of(source.config) for source in sources]
        return known[0] if len(known) == 1 and sources[0].whole else digest([known, setting.text])

    def indexed(self, config: FeatureConfig) -> AttributionIndex:
        """The index of a feature set.

        Raises:
            DtrakError: it is not built, or has another fingerprint; the message names the changed fields.
        """
        fingerprint = self.fingerprint_of(config)
        if fingerprint not in self._indexes:
            folder = self.folder.index / fingerprint
            if not index_is_built(folder):
                self._refuse(config)
            self._indexes[fingerprint] = AttributionIndex(folder, self.store(config))
        return self._indexes[fingerprint]

    def _key(self, side: Side) -> str:
        return digest(
            [side.dim, *([self.fingerprint_of(s.config), s.weights, s.derived, s.unit] for s in side.sources)]
        )

    def _read(self, side: Side) -> Readout:
        source, residuals = side.sources[0], cache(partial(self._residuals, side))
        if not (len(side.sources) == 1 and source.whole and side.dim == source.config.projection_dim):
            return Readout(self._sum(side), residuals)
        if source.config in self.folder.study.features:
            index = self.indexed(source.config)
            return Readout(index.features, residuals, index.kernel)
        return Readout(self.store(source.config).read(), residuals)

    def _residuals(self, side: Side) -> Float[np.ndarray, " n"]:
        """rₙ, the mean over the side's pairs p of eₙₚ / ‖eₙ‖, where eₙₚ² = mean((ε_θ − ε)²) of pair p."""
        used = [(self.store(s.config).values()[..., 0], np.array(s.weights) != 0) for s in side.sources]
        errors = np.sqrt(np.concatenate([values[:, chosen] for values, chosen in used], axis=1))
        return unit_rows(errors).mean(1)

    def _sum(self, side: Side) -> Float[np.ndarray, "n k"]:
        total: Any = 0.0
        for source in side.sources:
            store = self.store(source.config)
            weights = self._weights(source, store.values)
            total = total + store.weighted(weights, side.dim, source.unit)
        return total

    def _weights(self, source: Source, values: Any) -> Float[np.ndarray, "*n parts"]:
        size = int(np.prod(self.model.latent_shape))

        def elbo(timesteps: list[int]) -> np.ndarray:
            return (
                self.model.process.elbo_weights(torch.tensor(timesteps, device=self.model.device))
                .double()
                .cpu()
                .numpy()
            )

        return part_weights(source, values, size, elbo)

    def _refuse(self, config: FeatureConfig) -> None:
        name, wanted = self.folder.study.name, self.identity(config)
        hint = f"python -m index_builder build {name}"
        present = {self.fingerprint_of(listed) for listed in self.folder.study.features}
        for path in sorted(self.folder.features.glob("*/manifest.json")):
            if path.parent.name in present:
                continue  # of another listed set, or of one whose index is not built yet
            built = FeatureStore.open(path.parent).identity
            if built["output"] == config.output and built.get("split") == config.split:
                differing = [key for key in wanted if wanted[key] != built.get(key)]
                if differing:
                    raise DtrakError(
                        f"The index of study '{name}' is out of date: {', '.join(differing)} changed since it was "
                        "built.",
                        hint=hint,
                    )
        raise DtrakError(f"The index of study '{name}' is not built.", hint=hint)
