"""The command line: prepare data, train, build features and indexes, verify, attribute.

Results go to standard output, progress and messages to standard error. The exit code is 1 for an
error and 2 for invalid arguments.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from dtrak.build.status import study_status
from dtrak.config import ROOT, configs, load_study, study_names, workspace
from dtrak.execution.share import Share
from dtrak.methods.settings import Setting
from dtrak.study.folder import StudyFolder
from dtrak.utils.errors import DtrakError
from dtrak.utils.progress import progress
from index_builder.exact import check_exact, exact
from index_builder.ledgering import data_summary, import_scores, ledger
from index_builder.measuring import counterfactual, evaluate, removals, retrain
from index_builder.new import new
from index_builder.options import (
    BatchOption,
    DeviceOption,
    EngineFor,
    JsonOption,
    ShardOption,
    StudyArgument,
    takes_engine,
    takes_setting,
)
from index_builder.planning import plan
from index_builder.terminal import errors, show_messages

app = typer.Typer(
    name="dtrak",
    help="Find the training images that influenced a generated image.\n\n"
    "STUDY is the name of a study or the path of its YAML file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; a :class:`DtrakError` becomes a message and exit code 1."""
    try:
        app()
    except DtrakError as error:
        errors.print(f"[bold red]Error:[/] {escape(error.message)}", soft_wrap=True)
        if error.hint:
            errors.print(f"[bold]What to do:[/] {escape(error.hint)}", soft_wrap=True)
        raise SystemExit(1) from None
    except OSError as error:
        errors.print(f"[bold red]Error:[/] {escape(f'{error.filename or error}: {error.strerror or type(error)}')}")
        errors.print("[bold]What to do:[/] Check that the file exists and can be read, and the workspace written.")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        errors.print("Interrupted. Finished work is kept; run the same command to resume.")
        raise SystemExit(130) from None


@app.callback()
def _configure() -> None:
    show_messages()


@app.command("app")
def open_app(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 8501,
    headless: Annotated[bool, typer.Option(help="Do not open a browser.")] = False,
) -> None:
    """Open the app in a browser; it is reachable from this machine only."""
    command = [
        sys.executable, "-m", "streamlit", "run", "app.py", "--server.address", "127.0.0.1", "--server.port", str(port),
        "--server.headless", str(headless).lower(), "--browser.gatherUsageStats", "false",
    ]  # fmt: skip
    environment = os.environ | {"DTRAK_WORKSPACE": str(workspace()), "DTRAK_CONFIGS": str(configs())}
    raise SystemExit(subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode)


@app.command()
def studies(as_json: JsonOption = False) -> None:
    """List all studies and their build status."""
    found = [study_status(StudyFolder(load_study(name))) for name in study_names()]
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for status in found:
        print(f"{status['name']}: {status['title']}")
        for part in ("data", "model", "features", "index"):
            print(f"  {part:9} {status[part]}")


@app.command()
def prepare(
    study: StudyArgument,
    force: Annotated[bool, typer.Option(help="Prepare the data again, even if already prepared.")] = False,
    queries: Annotated[
        bool, typer.Option(help="Also generate the evaluation queries; needs the trained model.")
    ] = False,
    device: DeviceOption = "cpu",
) -> None:
    """Read and validate the images of STUDY, list rejected files, and download its model if it is on a hub."""
    from dtrak.build.pipeline import prepare_data
    from dtrak.study.folder import hub_folder

    folder = StudyFolder(load_study(study))
    prepare_data(folder, force)
    if folder.study.model.hub:
        errors.print(f"Model '{folder.study.model.hub}': {hub_folder(folder.study.model.hub, download=True)}")
    if queries:
        from dtrak.evaluation.subsets import query_set

        with progress("queries", None) as show:
            query_set(folder, lambda done, total: show(done, "", total), device)


@app.command()
def train(
    study: StudyArgument,
    member: Annotated[
        int | None,
        typer.Option(min=1, help="Train this ensemble member on a random half instead.", show_default=False),
    ] = None,
    device: DeviceOption = "cpu",
) -> None:
    """Train the model of STUDY, and first its base model if needed; resumable."""
    from dtrak.build.training import train_ensemble_member, train_model

    folder = StudyFolder(load_study(study))
    if member is None:
        train_model(folder, device)
    else:
        train_ensemble_member(folder, member, device)


@app.command()
@takes_engine
def build(
    study: StudyArgument,
    engine_for: EngineFor,
    batch_size: BatchOption = 16,
    device: DeviceOption = "cpu",
    index_only: Annotated[
        bool, typer.Option("--index-only", help="Build only the index, not the ablation features.")
    ] = False,
    shard: ShardOption = None,
) -> None:
    """Compute the features of STUDY, build its index, then compute the ablation features; resumable."""
    from dtrak.api import Study

    opened, engine = Study(load_study(study)), engine_for(device)
    if shard is not None:
        opened.build_share(Share.parse(shard), engine, batch_size, device, index_only=index_only)
        errors.print(f"Shard {shard} is done. After all shards: python -m index_builder merge {study}")
        return
    opened.build(index_only=index_only, engine=engine, batch_size=batch_size, device=device)


@app.command()
def merge(study: StudyArgument, device: DeviceOption = "cpu") -> None:
    """Build the index of STUDY from features computed with --shard; report missing shards."""
    from dtrak.api import Study

    Study(load_study(study)).merge(device)


for command in (
    new,
    plan,
    retrain,
    evaluate,
    counterfactual,
    removals,
    exact,
    check_exact,
    ledger,
    import_scores,
    data_summary,
):
    app.command()(command)


@app.command()
def verify(
    study: StudyArgument,
    repair: Annotated[bool, typer.Option(help="Remove damaged parts, so that the next build recomputes them.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every file hash and completion mark of STUDY, and report what to rebuild."""
    from dtrak.build.verify import verify_study

    folder = StudyFolder(load_study(study))
    problems = verify_study(folder, repair)
    if as_json:
        print(json.dumps({"study": folder.study.name, "problems": problems}, indent=2))
    elif problems:
        for problem in problems:
            print(problem)
        hint = f"python -m index_builder build {study}"
        errors.print(f"{'Damaged parts were removed. ' if repair else ''}To rebuild: {hint}")
    else:
        print(f"'{folder.study.name}' is intact.")
    if problems and not repair:
        raise SystemExit(1)


@app.command()
@takes_setting
def attribute(
    study: StudyArgument,
    setting: Setting,
    image: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="An image file to attribute.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Generate an image from this seed and attribute it.")] = None,
    label: Annotated[str | None, typer.Option(help="Class or prompt to condition on. Default: unconditional.")] = None,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Denoising steps, with --seed.")] = 50,
    guidance: Annotated[
        float | None,
        typer.Option(min=0, max=20, help="Guidance scale, with --seed. Default: the study's.", show_default=False),
    ] = None,
    negative: Annotated[str, typer.Option(help="Negative prompt, with --seed.")] = "",
    region: Annotated[
        str | None,
        typer.Option(help="Ask about a part: left,top,right,bottom from 0 to 1.", show_default=False),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of proponents and of opponents to print.")] = 10,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Score all training images instead of searching the index.")
    ] = False,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Rank training images by their influence on one image."""
    if (image is None) == (seed is None):
        raise typer.BadParameter("give either --image or --seed")
    from dtrak.analysis.significance import null_of
    from dtrak.app.evaluate import reliability
    from dtrak.app.views import significance
    from dtrak.evaluation.results import load_evaluation
    from dtrak.gradients.region import Region
    from dtrak.methods.attributor import Attributor
    from dtrak.methods.queries import generate_query, query_from_file
    from dtrak.methods.ranking import as_json as to_json
    from dtrak.models.generation import GenerationSettings

    attributor = Attributor(StudyFolder(load_study(study)), device)
    if image is not None:
        query, described = query_from_file(attributor, image, label)
    else:
        assert seed is not None
        scale = attributor.folder.study.guidance if guidance is None else guidance
        generation = GenerationSettings(seed, steps, label, scale, negative)
        query, described = generate_query(attributor, generation), generation.as_dict()
    if region is not None:
        query = replace(query, region=Region.parse(region))
        described |= {"region": region}
    features = attributor.features(query, [setting], by_block=False)
    answer = attributor.attribute(query, features, setting, top, exhaustive)
    measured = reliability(load_evaluation(attributor.folder), setting, query.settings is not None).text
    try:
        if query.region is not None:
            raise DtrakError("It compares whole images.")
        verdict = null_of(attributor, setting).judge(answer.scores)
        tested = significance(verdict).replace("**", "")
    except DtrakError as reason:
        verdict, tested = None, f"No significance test: {reason.message}"
    judged = None if verdict is None else verdict.as_dict(attributor.table.train_ids)
    content = to_json(attributor.folder.study.name, described, answer, measured, judged)
    if as_json:
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return
    errors.print(tested)
    errors.print(measured)
    for side in ("proponents", "opponents"):
        damped = "" if answer.damping is None else f", λ = {answer.damping:g} × mean eigenvalue"
        print(f"{side} by {setting.title}{damped}")
        for place, entry in enumerate(content[side], 1):
            print(f"{place:4} {entry['score']:+.4g}  {entry['id']}  {entry['caption']}  ({entry['creator']})")


@app.command()
@takes_setting
def scores(
    study: StudyArgument,
    setting: Setting,
    queries: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Folder of query images.")],
    out: Annotated[Path, typer.Option(help="Output .npz file: scores [Q, N], train_ids, query_files.")],
    device: DeviceOption = "cpu",
) -> None:
    """Score every training image for every image in a folder."""
    from dtrak.methods.attributor import Attributor
    from dtrak.methods.queries import write_scores

    attributor = Attributor(StudyFolder(load_study(study)), device)
    with progress("scores", None) as advance:
        refused = write_scores(attributor, queries, out, setting, lambda done, total: advance(done, "", total))
    for name, reason in refused:
        errors.print(f"Skipped {name}: {reason}")
