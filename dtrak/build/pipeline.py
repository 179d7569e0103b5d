"""From a configuration to a study that can be asked: data, features, indexes, embeddings; resumable."""

import logging
import time
from collections.abc import Mapping, Sequence

from dtrak.build.costs import INDEX_PART, record_cost
from dtrak.build.features import ablation_parts, build_indexes, build_parts, open_stores
from dtrak.config import FeatureConfig
from dtrak.data import PrepareReport, prepare
from dtrak.data.table import is_prepared
from dtrak.execution.engines import Engine
from dtrak.execution.share import Share
from dtrak.index.store import FeatureStore
from dtrak.linalg.conjugate_gradients import road
from dtrak.methods.base import LOSS
from dtrak.methods.embeddings import Embedder, train_embeddings
from dtrak.methods.kfac import fit_factors
from dtrak.methods.training_side import TrainingSide
from dtrak.study.folder import StudyFolder, remember_source
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import exclusive
from dtrak.utils.progress import progress

logger = logging.getLogger(__name__)
NAMED = 20  # refused files that are listed in the log


def prepare_data(folder: StudyFolder, force: bool = False) -> PrepareReport | None:
    """Read and check the images, and log what was left out; None if that was done before.

    Args:
        force: read them again.

    Raises:
        DtrakError: there is no usable image, or the source cannot be read.
    """
    remember_source(folder)
    if is_prepared(folder.study, folder.data) and not force:
        return None
    name = folder.study.name
    with exclusive(folder.root, f"study '{name}'"), progress(f"prepare {name}", None) as advance:
        report = prepare(folder.study, folder.data, lambda number: advance(number, ""))
    logger.info(
        "'%s': %d training images, %d held out%s, %d duplicates and %d unusable files left out.",
        name, report.train, report.heldout, _held_out_by(folder), len(report.duplicates), len(report.refused),
    )  # fmt: skip
    for refused in report.refused[:NAMED]:
        logger.info("  %s: %s", refused["id"], refused["reason"])
    if report.refused or report.duplicates:
        logger.info("  All of them are listed in %s.", folder.data / "report.json")
    return report


def _held_out_by(folder: StudyFolder) -> str:
    data = folder.study.data
    own = data.heldout_split or data.heldout_size
    return "" if own or not data.holdout else f" (data.holdout = {data.holdout:g}, unless the source says its split)"


def require_prepared(folder: StudyFolder) -> None:
    """Refuse to begin a share of the work before what all shares need is there.

    Raises:
        DtrakError: it says what to run first.
    """
    if not is_prepared(folder.study, folder.data):
        raise DtrakError(
            f"The data of '{folder.study.name}' is not prepared.",
            hint=f"Before the shares start: python -m index_builder prepare {folder.study.name}",
        )


def compute_features(
    folder: StudyFolder,
    parts: Mapping[str, Sequence[FeatureConfig]],
    engine: Engine,
    batch_size: int = 16,
    device: str = "cpu",
    share: Share | None = None,
) -> list[FeatureStore]:
    """Compute what is missing of some parts, or a share of it, and log what each took; their stores."""
    with progress("features", None) as advance:
        built = build_parts(
            folder, parts, engine, batch_size, device, lambda part, done, total: advance(done, part, total), share
        )
    if share is None:  # costs are those of whole parts
        for title, part in built.items():
            cost = record_cost(folder, title, part.stores, part.seconds)
            logger.info("  %s: %.0f s, %.0f MB", title, cost.seconds, cost.bytes / 1e6)
    return [store for part in built.values() for store in part.stores]


def build_index_part(folder: StudyFolder, engine: Engine, batch_size: int = 16, device: str = "cpu") -> None:
    """The features that the indexes need, and the indexes."""
    logger.info("Features of '%s', each part with the time and space that it took:", folder.study.name)
    stores = compute_features(folder, {INDEX_PART: folder.study.features}, engine, batch_size, device)
    for rows, columns in dict.fromkeys((store.rows, store.dim) for store in stores):
        logger.info("%s", road(rows, columns))
    build_indexes(folder, stores)


def build_rest(folder: StudyFolder, engine: Engine, batch_size: int = 16, device: str = "cpu") -> None:
    """What ablations and similarity baselines need."""
    if folder.study.ablations:
        compute_features(folder, ablation_parts(folder.study.ablations), engine, batch_size, device)
    fit_ekfac(folder, device)
    embed(folder)


def fit_ekfac(folder: StudyFolder, device: str = "cpu") -> None:
    """The factors of EK-FAC influence, for studies that keep features of the loss."""
    if not any(config.output == LOSS for config in folder.study.features):
        return
    start = time.monotonic()
    with progress("EK-FAC factors", None) as show:
        fitted = fit_factors(
            TrainingSide(folder, device), lambda done, total: show(done, "images, of two passes", total)
        )
    if fitted:
        logger.info("  EK-FAC factors: %.0f s", time.monotonic() - start)


def build_share(
    folder: StudyFolder, share: Share, engine: Engine, batch_size: int = 16, device: str = "cpu", rest: bool = True
) -> None:
    """One share of all features; :func:`merge_shares` ends the build.

    Args:
        rest: also the ablations' features.
    """
    require_prepared(folder)
    more = ablation_parts(folder.study.ablations) if rest else {}
    compute_features(folder, {INDEX_PART: folder.study.features, **more}, engine, batch_size, device, share)


def merge_shares(folder: StudyFolder) -> None:
    """Build the indexes from what the shares computed.

    Raises:
        DtrakError: some of it is missing.
    """
    require_prepared(folder)
    stores = open_stores(folder, folder.study.features)
    if lacking := sum(len(store.missing()) for store in stores):
        of = sum(len(store.shards) for store in stores)
        raise DtrakError(
            f"{lacking} of {of} shards of the index's features are missing.",
            hint=f"Run the shares that did not finish again, or python -m index_builder build {folder.study.name}.",
        )
    build_indexes(folder, stores)
    fit_ekfac(folder)
    embed(folder)


def embed(folder: StudyFolder) -> None:
    """The image embeddings of the training images."""
    start = time.monotonic()
    rows = train_embeddings(folder, lambda: Embedder(folder.study.embedding))
    seconds, size = time.monotonic() - start, rows.nbytes / 1e6
    logger.info("  embeddings by %s: %.0f s, %.0f MB", folder.study.embedding, seconds, size)
