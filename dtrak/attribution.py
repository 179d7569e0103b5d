"""From an image to the training images it leans on: the one road that command line and pages take."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from dtrak.config import FeatureConfig
from dtrak.data import Record, Table
from dtrak.errors import DtrakError
from dtrak.features import FeatureExtractor, identity
from dtrak.files import digest
from dtrak.index import AttributionIndex, QueryFeature
from dtrak.methods import METHODS, Method, get_method
from dtrak.models import DiffusionModel
from dtrak.store import FeatureStore
from dtrak.studies import StudyFolder, load_study_model


@dataclass(frozen=True)
class Query:
    """An image to attribute.

    Attributes:
        pixels: as the model sees it.
        label: the class to condition on, or None for any.
    """

    pixels: UInt8[np.ndarray, "r r 3"]
    label: str | None = None

    @cached_property
    def id(self) -> str:
        """Keys the noise of the query's feature: the same pixels always meet the same noise."""
        return "query:" + hashlib.sha256(np.ascontiguousarray(self.pixels).tobytes()).hexdigest()[:32]


@dataclass(frozen=True)
class Scored:
    """A training sample and its score."""

    record: Record
    score: float


@dataclass(frozen=True)
class Attribution:
    """The answer for one query.

    Attributes:
        proponents: highest scores, descending; only positive ones.
        opponents: lowest scores, ascending; only negative ones.
        scores: of every training sample, in row order.
    """

    method: Method
    damping: float | None
    fingerprint: str
    proponents: list[Scored]
    opponents: list[Scored]
    scores: Float[np.ndarray, " n"]


def resolve_damping(method: Method, damping: float | None) -> float | None:
    """The damping to use: the given one, or the method's default.

    Raises:
        DtrakError: it is not a positive number, or the method has no kernel to damp.
    """
    if damping is None:
        return method.damping
    if method.damping is None:
        raise DtrakError(f"{method.title} has no damping.", hint="Leave the damping out.")
    if not 0 < damping < float("inf"):
        raise DtrakError(f"The damping must be a positive number, not {damping}.", hint="Try 0.1.")
    return damping


def row_norms(
    method: Method, index: AttributionIndex, query: QueryFeature, damping: float | None
) -> Float[np.ndarray, " n"]:
    """What each training row's score is divided by; rows without a gradient keep their zero score."""
    norms = np.ones(len(index.norms))
    if method.normaliser in ("norm", "cosine"):
        norms = index.norms
    elif method.normaliser == "influence" and damping is not None:
        norms = index.kernel.influence_norms(index.features, damping)
    norms = np.where(norms > 0, norms, 1.0)
    return norms * np.linalg.norm(query.vector.astype(np.float64)) if method.normaliser == "cosine" else norms


class Attributor:
    """A study opened for queries: its model, its table and its indexes, each loaded when first needed.

    Args:
        batch_size: timesteps per forward pass of a query.
    """

    def __init__(self, folder: StudyFolder, device: str = "cpu", batch_size: int = 16):
        self.folder, self.device, self._batch_size = folder, device, batch_size
        self._indexes: dict[str, AttributionIndex] = {}

    @cached_property
    def model(self) -> DiffusionModel:
        return load_study_model(self.folder, self.device)

    @cached_property
    def table(self) -> Table:
        return self.folder.table

    @cached_property
    def identities(self) -> list[dict[str, Any]]:
        """What the study's feature sets depend on, now."""
        model, data = self.model.fingerprint(), self.table.fingerprint()
        return [identity(model, data, config) for config in self.folder.study.features]

    @cached_property
    def _extractor(self) -> FeatureExtractor:
        return FeatureExtractor(self.model, self.folder.study.features, self._batch_size)

    def methods(self) -> list[Method]:
        """The methods whose features this study has."""
        outputs = {config.output for config in self.folder.study.features}
        return [method for method in METHODS.values() if method.output in outputs]

    def features(self, query: Query) -> list[QueryFeature]:
        """The query's features, one for each feature set of the study; the costly part of a query."""
        vectors = self._extractor(self.model.encode(query.pixels[None])[0], query.id, query.label)
        return [QueryFeature(vector, identity) for vector, identity in zip(vectors, self.identities, strict=True)]

    def index(self, method: Method) -> AttributionIndex:
        """The index that the method searches.

        Raises:
            DtrakError: it is not built, or was built under another fingerprint: the fields are named.
        """
        position = self._position(method)
        wanted = self.identities[position]
        fingerprint = digest(wanted)
        if fingerprint not in self._indexes:
            folder = self.folder.index / fingerprint
            if not (folder / "manifest.json").exists():
                self._refuse(self.folder.study.features[position], wanted)
            store = FeatureStore.open(self.folder.features / fingerprint)
            self._indexes[fingerprint] = AttributionIndex(folder, store)
        return self._indexes[fingerprint]

    def attribute(
        self,
        features: list[QueryFeature],
        method: str | Method,
        damping: float | None = None,
        top: int = 10,
    ) -> Attribution:
        """Proponents, opponents and all scores for a query's features; milliseconds, no gradient.

        Args:
            damping: relative λ; default the method's. A method without a kernel takes none.
            top: how many proponents and opponents at most.
        """
        method = get_method(method) if isinstance(method, str) else method
        damping = resolve_damping(method, damping)
        index, query = self.index(method), features[self._position(method)]
        scores = index.scores(query, damping) / row_norms(method, index, query, damping)
        q = index.searchable(query, damping)

        def found(sign: int) -> list[Scored]:
            # A row normaliser changes the order, which an index of raw rows cannot know: rank all rows.
            rows = index.search(sign * q, top)[0] if method.normaliser == "none" else np.argsort(-sign * scores)[:top]
            ordered = sorted(rows.tolist(), key=lambda row: (-sign * scores[row], row))
            return [Scored(self.table.records[row], float(scores[row])) for row in ordered if sign * scores[row] > 0]

        return Attribution(method, damping, index.store.fingerprint, found(1), found(-1), scores)

    def _position(self, method: Method) -> int:
        for position, config in enumerate(self.folder.study.features):
            if config.output == method.output:
                return position
        raise DtrakError(
            f"{method.title} needs features of '{method.output}', "
            f"which study '{self.folder.study.name}' does not list.",
            hint=f"Add '- output: {method.output}' under features in {self.folder.study.source.name} and build.",
        )

    def _refuse(self, config: FeatureConfig, wanted: dict[str, Any]) -> None:
        name = self.folder.study.name
        hint = f"python -m index_builder build {name}"
        for path in sorted(self.folder.features.glob("*/manifest.json")):
            built = FeatureStore.open(path.parent).identity
            if built["output"] == config.output:
                differing = [key for key in wanted if wanted[key] != built.get(key)]
                if differing:
                    raise DtrakError(
                        f"The index of study '{name}' was built under another fingerprint: "
                        f"{', '.join(differing)} changed since.",
                        hint=hint,
                    )
        raise DtrakError(f"The index of study '{name}' is not built.", hint=hint)


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
        "damping": attribution.damping,
        "fingerprint": attribution.fingerprint,
        "proponents": [entry(s) for s in attribution.proponents],
        "opponents": [entry(s) for s in attribution.opponents],
    }
