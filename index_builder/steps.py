"""What several commands do: prepare the data, compute features with progress."""

from collections.abc import Mapping, Sequence

from dtrak.build.costs import record_cost
from dtrak.config import FeatureConfig
from dtrak.execution.engines import Engine
from dtrak.execution.share import Share
from dtrak.index.store import FeatureStore
from dtrak.study.folder import StudyFolder, remember_source
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import exclusive
from index_builder.terminal import errors, progress


def compute(
    folder: StudyFolder,
    parts: Mapping[str, Sequence[FeatureConfig]],
    engine: Engine,
    batch_size: int = 16,
    device: str = "cpu",
    share: Share | None = None,
) -> list[FeatureStore]:
    """Compute what is missing of some parts, or a share of it, and print what each took; their stores."""
    from dtrak.build.features import build_parts

    with progress("features", None) as advance:
        built = build_parts(
            folder, parts, engine, batch_size, device, lambda part, done, total: advance(done, part, total), share
        )
    if share is not None:
        return [store for part in built.values() for store in part.stores]  # costs are those of whole parts
    for title, part in built.items():
        cost = record_cost(folder, title, part.stores, part.seconds)
        errors.print(f"  {title}: {cost.seconds:.0f} s, {cost.bytes / 1e6:.0f} MB")
    return [store for part in built.values() for store in part.stores]


def prepare_data(folder: StudyFolder, force: bool = False) -> None:
    """Read and check the images, unless that was done, and print what was left out."""
    from dtrak.data import prepare
    from dtrak.data.table import is_prepared

    remember_source(folder)
    if is_prepared(folder.study, folder.data) and not force:
        return
    name = folder.study.name
    with exclusive(folder.root, f"study '{name}'"), progress(f"prepare {name}", None) as advance:
        report = prepare(folder.study, folder.data, lambda number: advance(number, ""))
    errors.print(
        f"'{folder.study.name}': {report.train} training images, {report.heldout} held out, "
        f"{len(report.duplicates)} duplicates and {len(report.refused)} unusable files left out."
    )
    for refused in report.refused[:20]:
        errors.print(f"  {refused['id']}: {refused['reason']}")
    if report.refused or report.duplicates:
        errors.print(f"  All of them are named in {folder.data / 'report.json'}.")


def require_prepared(folder: StudyFolder) -> None:
    """Refuse to begin a share of the work before what all shares need is there.

    Raises:
        DtrakError: it says what to run first.
    """
    from dtrak.data.table import is_prepared

    if not is_prepared(folder.study, folder.data):
        raise DtrakError(
            f"The data of '{folder.study.name}' is not prepared.",
            hint=f"Before the shares start: python -m index_builder prepare {folder.study.name}",
        )
