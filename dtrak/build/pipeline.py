"""From a configuration to a study ready for queries: data, features, indexes, embeddings; resumable."""

import logging
import time
from collections.abc import Mapping, Sequence

from dtrak.analysis.map import KINDS, map_of
from dtrak.build.costs import INDEX_PART, record_cost
from dtrak.build.features import ablation_parts, build_indexes, build_parts, open_stores
from dtrak.build.status import building_note
from dtrak.config import LAST, FeatureConfig
from dtrak.data import PrepareReport, prepare
from dtrak.data.table import is_prepared, source_changed
from dtrak.execution.engines import Engine
from dtrak.execution.share import Share
from dtrak.index.store import FeatureStore
from dtrak.linalg.conjugate_gradients import solver_choice
from dtrak.methods.base import LOSS
from dtrak.methods.embeddings import Embedder, train_embeddings
from dtrak.methods.kfac import fit_factors
from dtrak.methods.training_side import TrainingSide
from dtrak.study.folder import StudyFolder, remember_source
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import exclusive
from dtrak.utils.progress import progress

logger = logging.getLogger(__name__)
NAMED = 20  # rejected files listed in the log


def prepare_data(folder: StudyFolder, force: bool = False) -> PrepareReport | None:
    """Read and validate the images, and log what was skipped; None if the data were already prepared.

    Args:
        force: prepare the data again even if already prepared.

    Raises:
        DtrakError: there is no usable image, or the source cannot be read.
    """
    remember_source(folder)
    if is_prepared(folder.study, folder.data) and not force:
        if changed := source_changed(folder.study, folder.data):
            logger.warning(
                "%s To read it again: python -m index_builder prepare %s --force", changed, folder.study.name
            )
        return None
    name = folder.study.name
    with exclusive(folder.root, f"study '{name}'"), progress(f"prepare {name}", None) as advance:
        report = prepare(folder.study, folder.data, lambda number: advance(number, ""))
    logger.info(
        "'%s': %d training images, %d held out%s; %d duplicates and %d unusable files skipped.",
        name, report.train, report.heldout, _held_out_by(folder), len(report.duplicates), len(report.refused),
    )  # fmt: skip
    for refused in report.refused[:NAMED]:
        logger.info("  %s: %s", refused["id"], refused["reason"])
    if report.opted_out:
        logger.warning(
            "%d images carry a mark against training (such as '%s': %s).",
            len(report.opted_out), report.opted_out[0]["id"], report.opted_out[0]["mark"],
        )  # fmt: skip
    if report.refused or report.duplicates or report.opted_out:
        logger.info("  The full list is in %s.", folder.data / "report.json")
    return report


def _held_out_by(folder: StudyFolder) -> str:
    data = folder.study.data
    own = data.heldout_split or data.heldout_size
    if own or not data.holdout:
        return ""
    return f" (data.holdout = {100 * data.holdout:g} %, unless the source defines the split)"


def require_prepared(folder: StudyFolder) -> None:
    """Check that the data are prepared before a part of the work (--shard) starts.

    Raises:
        DtrakError: they are not.
    """
    if not is_prepared(folder.study, folder.data):
        raise DtrakError(
            f"The data of '{folder.study.name}' are not prepared.",
            hint=f"Run this first, once: python -m index_builder prepare {folder.study.name}",
        )


def compute_features(
    folder: StudyFolder,
    parts: Mapping[str, Sequence[FeatureConfig]],
    engine: Engine,
    batch_size: int = 16,
    device: str = "cpu",
    share: Share | None = None,
) -> list[FeatureStore]:
    """Compute the missing shards of some parts, log each part's cost, and return the stores.

    Args:
        share: compute only these shards; costs are then not recorded.
    """
    with progress("features", None) as advance, building_note(folder) as note:

        def report(part: str, done: int, total: int) -> None:
            advance(done, part, total)
            note(part, done, total)

        built = build_parts(folder, parts, engine, batch_size, device, report, share)
    if share is None:  # the recorded cost is that of a whole part
        for title, part in built.items():
            cost = record_cost(folder, title, part.stores, part.seconds)
            logger.info("  %s: %.0f s, %.0f MB", title, cost.seconds, cost.bytes / 1e6)
    return [store for part in built.values() for store in part.stores]


def build_index_part(folder: StudyFolder, engine: Engine, batch_size: int = 16, device: str = "cpu") -> None:
    """Compute the features of the indexes, and build the indexes."""
    logger.info("Features of '%s', with time and disk space:", folder.study.name)
    stores = compute_features(folder, {INDEX_PART: folder.study.features}, engine, batch_size, device)
    for rows, columns in dict.fromkeys((store.rows, store.dim) for store in stores):
        logger.info("%s", solver_choice(rows, columns))
    build_indexes(folder, stores)


def build_rest(folder: StudyFolder, engine: Engine, batch_size: int = 16, device: str = "cpu") -> None:
    """Compute the features of unrelated images and of ablations, the EK-FAC factors and the image embeddings."""
    compute_features(folder, ablation_parts(folder.study.later_sets), engine, batch_size, device)
    fit_ekfac(folder, device)
    embed(folder)
    if folder.study.features:
        draw_maps(folder, device)


def fit_ekfac(folder: StudyFolder, device: str = "cpu") -> None:
    """Fit the factors of EK-FAC influence, for studies with features of the loss."""
    if not any(c.output == LOSS and c.model == LAST for c in folder.study.feature_sets):
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
    """Compute a part (--shard) of all features; :func:`merge_shares` completes the build.

    Args:
        rest: also compute what a build computes after the index.

    Raises:
        DtrakError: the data are not prepared.
    """
    require_prepared(folder)
    more = ablation_parts(folder.study.later_sets) if rest else {}
    compute_features(folder, {INDEX_PART: folder.study.features, **more}, engine, batch_size, device, share)


def merge_shares(folder: StudyFolder, device: str = "cpu") -> None:
    """Build the indexes from shards computed by several processes.

    Raises:
        DtrakError: the data are not prepared, or shards are missing.
    """
    require_prepared(folder)
    stores = open_stores(folder, folder.study.features)
    if lacking := sum(len(store.missing()) for store in stores):
        of = sum(len(store.shards) for store in stores)
        raise DtrakError(
            f"{lacking} of {of} shards of the index's features are missing.",
            hint=f"Rerun the unfinished --shard commands, or python -m index_builder build {folder.study.name}.",
        )
    build_indexes(folder, stores)
    fit_ekfac(folder, device)
    embed(folder)
    draw_maps(folder, device)


def embed(folder: StudyFolder) -> None:
    """Compute the embeddings of the training images."""
    start = time.monotonic()
    rows = train_embeddings(folder, lambda: Embedder(folder.study.embedding_source))
    seconds, size = time.monotonic() - start, rows.nbytes / 1e6
    logger.info("  embeddings by %s: %.0f s, %.0f MB", folder.study.embedding, seconds, size)


def draw_maps(folder: StudyFolder, device: str = "cpu") -> None:
    """Compute the maps of the training images for the page Explore."""
    start, study = time.monotonic(), TrainingSide(folder, device)
    for kind in KINDS:
        map_of(study, kind)
    logger.info("  maps: %.0f s", time.monotonic() - start)
