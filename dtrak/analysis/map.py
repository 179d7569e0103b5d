"""The training set as a map: two coordinates per image, so that similar images lie close together.

By t-SNE (van der Maaten & Hinton, 2008, scikit-learn's) of gradient features or of image embeddings, each with rows of
norm 1 and reduced to 50 principal components. Distances between far groups mean nothing. Large studies show a sample.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from dtrak.analysis.evidence import linear
from dtrak.methods.attributor import Attributor
from dtrak.methods.embeddings import Embedder, train_embeddings
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting
from dtrak.methods.training_side import TrainingSide
from dtrak.study.folder import StudyFolder
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import atomic_write, digest
from dtrak.utils.noise import keyed_generator

MOST = 5_000  # images on a map
COMPONENTS, PERPLEXITY = 50, 30
VERSION = 1  # raise it whenever the coordinates change
Kind = Literal["features", "images"]
KINDS: dict[Kind, str] = {"features": "Gradient features", "images": "Image embeddings"}


@dataclass(frozen=True)
class Map:
    """A map of training images.

    Attributes:
        rows: the training images on it, ascending; all of them in small studies.
        places: coordinates of each.
    """

    rows: Int[np.ndarray, " m"]
    places: Float[np.ndarray, "m 2"]


def layout(vectors: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m 2"]:
    """Two coordinates for each row; deterministic. Fewer than five rows are laid out on a line."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    count = len(vectors)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = (vectors / np.where(norms > 0, norms, 1)).astype(np.float64)
    if count < 5:
        return np.stack([np.arange(count), np.zeros(count)], axis=1).astype(np.float32)
    size = min(COMPONENTS, count - 1, rows.shape[1])
    rows = PCA(
        size, svd_solver="full" if min(rows.shape) <= 2 * COMPONENTS else "randomized", random_state=0
    ).fit_transform(rows)
    perplexity = min(PERPLEXITY, (count - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(rows).astype(np.float32)


def map_of(study: TrainingSide, kind: Kind) -> Map:
    """The study's map, computed once and kept in its workspace.

    Raises:
        DtrakError: the features or the embedding are missing.
    """
    folder, size = study.folder, study.table.train_size
    rows = np.arange(size)
    if size > MOST:
        rows = np.sort(keyed_generator("map", 0, "").choice(size, MOST, replace=False))
    if kind == "features":
        (config,) = folder.study.features[:1] or (None,)
        if config is None:
            raise DtrakError("The study lists no features.", hint="Add 'features' to the YAML file.")
        known = study.fingerprint_of(config)
    else:
        known = digest([folder.study.embedding, study.table.fingerprint()])
    path = folder.root / "map" / f"{kind}-{digest([VERSION, known, MOST])}.npz"
    if path.exists():
        with np.load(path) as stored:
            return Map(stored["rows"], stored["places"])
    vectors = _features(study, rows) if kind == "features" else _embeddings(folder, rows)
    found = Map(rows, layout(vectors))
    with atomic_write(path) as file:
        np.savez(file, rows=found.rows, places=found.places)
    return found


def _features(study: TrainingSide, rows: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m k"]:
    return np.asarray(study.indexed(study.folder.study.features[0]).features[rows], np.float32)


def _embeddings(folder: StudyFolder, rows: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m d"]:
    return train_embeddings(folder, lambda: Embedder(folder.study.embedding_source))[rows]


def self_influence(attributor: Attributor, setting: Setting) -> Float[np.ndarray, " n"]:
    """φₙᵀ (ΦᵀΦ + λI)⁻¹ φₙ of every training image, in [0, 1): high for images unlike all others.

    Raises:
        DtrakError: the method has no kernel or several models, or features are missing.
    """
    _, _, readout, damping = linear(attributor, setting)
    if damping is None:
        raise DtrakError(f"{METHODS[setting.method].title} has no kernel.", hint="Choose D-TRAK or TRAK.")
    return readout.kernel.leverages(readout.features, damping)
