"""Commands for rights holders and providers: ledger, import-scores, data-summary."""

import json
from pathlib import Path
from typing import Annotated

import typer

from dtrak.config import load_study
from dtrak.methods.settings import Setting
from dtrak.study.folder import StudyFolder
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import write_bytes
from index_builder.options import MethodName, MethodOption, StudyArgument
from index_builder.terminal import errors


def ledger(
    study: StudyArgument,
    method: MethodOption = MethodName("dtrak"),
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write .csv or .json. Default: print JSON.", show_default=False)
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of a ledger instead.")] = False,
) -> None:
    """Credit the creators of STUDY's saved images: shares that sum to 1 with the unattributed part."""
    from dtrak.analysis.ledger import ledger as of_pictures
    from dtrak.analysis.ledger import share_null
    from dtrak.app.ledger import LedgerFile, as_csv, as_json, ledger_file
    from dtrak.app.service import StudyService

    if schema:
        print(json.dumps(LedgerFile.model_json_schema(), indent=2))
        return
    service, setting = StudyService(study), Setting(method.value)
    saved = service.saved_scores(setting)
    if not saved:
        raise DtrakError(
            "No saved image has been attributed by this method yet.",
            hint="Generate and attribute images in the app first.",
        )
    runs, scores = [run for run, _ in saved], [one for _, one in saved]
    records = service.attributor.table.train_records
    _, each = of_pictures(service.answer_of_study(setting, share_null), scores)
    measured = service.reliability(setting, runs[0]).text
    found = ledger_file(
        service.folder.study.name, service.model_fingerprint, setting.text, measured,
        service.attributor.fingerprint(setting), runs, each, records, scores,
    )  # fmt: skip
    if out is None:
        print(as_json(found).decode(), end="")
        return
    write_bytes(out, as_csv(found) if out.suffix == ".csv" else as_json(found))
    print(out)


def import_scores(
    study: StudyArgument, file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSON or CSV.")]
) -> None:
    """Read another tool's scores of STUDY's saved images; they become the method "imported".

    Each row has "output" (id of a saved image), "work" (id of a training image) and "score" or "share".
    """
    from dtrak.app.runs import RunStore
    from dtrak.methods.imported import import_scores as read
    from dtrak.methods.query import Query

    folder = StudyFolder(load_study(study))
    runs = RunStore(folder.runs)

    def query_of(name: str) -> str | None:
        run = runs.load(name)
        return name if name.startswith("query:") else Query(run.pixels).id if run else None

    images, left_out = read(folder, file.read_text(encoding="utf-8", errors="replace"), query_of)
    errors.print(f"Scores for {images} images; {left_out} rows are about other images and were left out.")


def data_summary(study: StudyArgument) -> None:
    """Print a draft of the EU summary of training data for STUDY, as Markdown."""
    from dtrak.build.data_summary import data_summary as draft

    print(draft(StudyFolder(load_study(study))), end="")
