"""The command line: prepare data, train, build features and indexes, verify them, ask them.

Results go to standard output, progress and messages to standard error; a failure exits with 1,
a wrong call with 2.
"""

import functools
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from dtrak.config import FeatureConfig, load_study, study_names
from dtrak.costs import INDEX_PART, record_cost
from dtrak.errors import DtrakError
from dtrak.files import exclusive
from dtrak.methods import METHODS
from dtrak.settings import Setting
from dtrak.store import FeatureStore
from dtrak.studies import StudyFolder, remember_source, study_status
from index_builder.options import (
    BatchOption,
    DeviceOption,
    JsonOption,
    PrecisionName,
    StudyArgument,
    TruthFamily,
    WorkersOption,
    takes_setting,
)
from index_builder.terminal import errors, progress

app = typer.Typer(
    name="index_builder",
    help="Build and ask indexes of a diffusion model's training images.\n\n"
    "STUDY is a name in configs/ or the path of a YAML file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; a :class:`DtrakError` becomes a message and exit code 1."""
    try:
        app()
    except DtrakError as error:
        errors.print(f"[bold red]Error:[/] {error.message}", markup=True, soft_wrap=True)
        if error.hint:
            errors.print(f"[bold]What to do:[/] {error.hint}", soft_wrap=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        errors.print("Stopped. What is finished is kept; the same command resumes.")
        raise SystemExit(130) from None


@app.command()
def studies(as_json: JsonOption = False) -> None:
    """List the studies and what of each is built."""
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
    force: Annotated[bool, typer.Option(help="Read the data again even if it is prepared.")] = False,
) -> None:
    """Read and check the images of STUDY; broken ones and duplicates are named and left out."""
    _prepare(StudyFolder(load_study(study)), force)


@app.command()
def train(
    study: StudyArgument,
    member: Annotated[
        int | None,
        typer.Option(min=1, help="Train this ensemble member, on a random half, instead.", show_default=False),
    ] = None,
) -> None:
    """Train the model of STUDY, or resume its training; a base it needs is trained first."""
    from dtrak.studies import needs_training, train_member, train_study
    from dtrak.training import Progress as Step

    folder = StudyFolder(load_study(study))
    if member is not None:
        _prepare(folder)
        with progress(f"train member {member}", folder.study.training.steps) as advance:
            path = train_member(folder, member, lambda step: advance(step.step, f"loss {step.loss:.4f}"))
        errors.print(f"Member {member} of '{folder.study.name}': {path}")
        return
    base = folder.study.model.base
    chain = [StudyFolder(load_study(base))] if base and needs_training(StudyFolder(load_study(base))) else []
    for part in [*chain, folder]:
        _prepare(part)
        with progress(f"train {part.study.name}", part.study.training.steps) as advance:

            def report(step: Step, advance: Callable[[int, str], None] = advance) -> None:
                advance(step.step, f"loss {step.loss:.4f}")

            paths = train_study(part, report)
        errors.print(f"Model of '{part.study.name}': {paths[-1]}")


@app.command()
def build(
    study: StudyArgument,
    workers: WorkersOption = None,
    batch_size: BatchOption = 16,
    device: DeviceOption = "cpu",
    index_only: Annotated[
        bool, typer.Option("--index-only", help="Only what the index needs; not the sets for ablations.")
    ] = False,
) -> None:
    """Compute the features of STUDY and build its index, then what the ablations need; resumes, does nothing twice."""
    from index_builder.engine import ablation_parts, build_indexes

    folder = StudyFolder(load_study(study))
    _prepare(folder)
    if device != "cpu":
        workers = 1  # one process drives the accelerator
    compute = functools.partial(_compute, folder, workers=workers or _cores(), batch_size=batch_size, device=device)
    errors.print(f"Features of '{folder.study.name}', each part with the time and space that it took:")
    build_indexes(folder, compute({INDEX_PART: folder.study.features}))
    _write_example(folder)
    errors.print(f"Index of '{folder.study.name}' is ready in {folder.index}.")
    if not index_only:
        if folder.study.ablations:
            compute(ablation_parts(folder.study.ablations))
        _embed(folder)


def _compute(
    folder: StudyFolder,
    parts: Mapping[str, Sequence[FeatureConfig]],
    workers: int,
    batch_size: int = 16,
    device: str = "cpu",
) -> list[FeatureStore]:
    from index_builder.engine import build_parts

    with progress("features", None) as advance:
        built = build_parts(
            folder, parts, workers, batch_size, device, lambda part, done, total: advance(done, part, total)
        )
    for title, part in built.items():
        cost = record_cost(folder, title, part.stores, part.seconds)
        errors.print(f"  {title}: {cost.seconds:.0f} s, {cost.bytes / 1e6:.0f} MB")
    return [store for part in built.values() for store in part.stores]


def _embed(folder: StudyFolder) -> None:
    from dtrak.similarity import Embedder, train_embeddings

    start = time.monotonic()
    rows = train_embeddings(folder, lambda: Embedder(folder.study.embedding))
    seconds, size = time.monotonic() - start, rows.nbytes / 1e6
    errors.print(f"  embeddings by {folder.study.embedding}: {seconds:.0f} s, {size:.0f} MB")


@app.command()
def retrain(
    study: StudyArgument,
    subsets: Annotated[int, typer.Option(min=2, help="How many random halves.")] = 64,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each half.")] = 2,
    family: Annotated[
        TruthFamily, typer.Option(help="lds: to score methods; fit: for empirical-influence and datamodel.")
    ] = TruthFamily("lds"),
    workers: WorkersOption = None,
    precision: Annotated[PrecisionName | None, typer.Option(help="Of the arithmetic. [default: the recipe's]")] = None,
) -> None:
    """Train STUDY again on random halves and keep what each model loses on fixed queries; resumes."""
    from index_builder.retraining import retrain_subsets

    folder = StudyFolder(load_study(study))
    _prepare(folder)
    with progress(f"retrain {folder.study.name}", subsets * seeds) as show:

        def advance(done: int, total: int) -> None:
            show(done, "", total)

        chosen: Any = precision.value if precision else None
        new = retrain_subsets(folder, family.value, subsets, seeds, workers or _cores(), chosen, advance)  # type: ignore[arg-type]
    errors.print(f"{subsets * seeds} subset models of '{folder.study.name}' are there, {new} of them new.")


@app.command()
def evaluate(
    study: StudyArgument, workers: WorkersOption = None, batch_size: BatchOption = 16, as_json: JsonOption = False
) -> None:
    """Say how well each built method, and each choice of the ablations, predicts the retrained models of STUDY."""
    from dtrak.attribution import Attributor
    from dtrak.evaluation.measure import evaluate as measure
    from dtrak.evaluation.measure import judges
    from dtrak.evaluation.results import save_evaluation
    from index_builder.engine import ablation_parts, evaluation_sets

    folder = StudyFolder(load_study(study))
    truth, _ = judges(Attributor(folder))
    errors.print("Features of the queries that the models were asked about:")
    _compute(folder, ablation_parts(evaluation_sets(folder)), workers or _cores(), batch_size)
    with progress("evaluate", None) as show:
        rows = measure(Attributor(folder), report=lambda what, done, total: show(done, what, total))
    save_evaluation(folder, rows, truth)
    if as_json:
        print(json.dumps([row.as_dict() for row in rows], indent=2))
        return
    print(f"LDS × 100 over {rows[0].subset_models} subset models of {rows[0].seeds} training seed(s) each.")
    print("λ is chosen on half of them and reported on the other half; oracle is the best λ on all, as papers report.")
    print(f"{'setting':44}{'queries':12}{'LDS':>7}{'95 % interval':>18}{'oracle':>9}  λ chosen")
    for row in sorted(rows, key=lambda r: (r.queries, -r.lds_crossfit)):
        low, high = row.interval
        between = f"{100 * low:.1f} to {100 * high:.1f}"
        dampings = ", ".join(f"{d:.3g}" for d in row.dampings)
        title = Setting.parse(row.setting).title
        score, oracle = 100 * row.lds_crossfit, 100 * row.lds_oracle
        print(f"{title:44}{row.queries:12}{score:7.1f}{between:>18}{oracle:9.1f}  {dampings}")


@app.command()
def counterfactual(
    study: StudyArgument,
    queries: Annotated[int, typer.Option(min=1, help="How many of the generated queries.")] = 16,
    remove: Annotated[
        int | None, typer.Option(min=1, help="Images to leave out. [default: a fifth of the set]", show_default=False)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of each training. [default: the recipe's]", show_default=False)
    ] = None,
    workers: WorkersOption = None,
    precision: Annotated[PrecisionName | None, typer.Option(help="Of the arithmetic. [default: the recipe's]")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train STUDY again without the images each method names, draw again, and say how far pictures moved; resumes."""
    from dtrak.attribution import Attributor
    from dtrak.evaluation.counterfactual import COMPARED, mean_with_interval
    from dtrak.evaluation.counterfactual import counterfactual as measure

    attributor = Attributor(StudyFolder(load_study(study)))
    count = remove or max(1, attributor.table.train_size // 5)
    chosen: Any = precision.value if precision else None
    name = attributor.folder.study.name
    with (
        exclusive(attributor.folder.root / "retrained", f"the retraining of '{name}'"),
        progress(f"counterfactuals of {name}", None) as show,
    ):
        found = measure(
            attributor, queries, count, workers or _cores(), steps, chosen,
            lambda done, total: show(done, "steps", total),
        )  # fmt: skip
    if as_json:
        print(json.dumps({"pairs": [asdict(pair) for pair in found.pairs], "behind": found.behind}, indent=2))
        return
    print(
        f"{count} of {attributor.table.train_size} images left out, {len(found.queries)} queries; means over queries."
    )
    print(
        f"{'left out by':22}{'pixels moved, ℓ2':>18}{'95 % interval':>18}{'embedding cosine':>18}{'95 % interval':>18}"
    )
    for name in COMPARED:
        pairs = found.of(name)
        cells = f"{METHODS[name].title:22}"
        for values in ([p.distance for p in pairs], [p.cosine for p in pairs]):
            mean, low, high = mean_with_interval(np.array(values))
            between = f"{low:.3f} to {high:.3f}"
            cells += f"{mean:18.3f}{between:>18}"
        print(cells)


@app.command()
def verify(
    study: StudyArgument,
    repair: Annotated[
        bool, typer.Option(help="Forget what is damaged, so that the next build makes it again.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every hash, shard and mark of STUDY, and say what to rebuild."""
    from dtrak.verify import verify_study

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
        print(f"'{folder.study.name}' is whole.")
    if problems and not repair:
        raise SystemExit(1)


@app.command()
@takes_setting
def attribute(
    study: StudyArgument,
    setting: Setting,
    image: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="An image file to attribute.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Generate an image from this seed and attribute it.")] = None,
    label: Annotated[
        str | None, typer.Option(help="The class to draw, or to read the image as. [default: any]")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Denoising steps, with --seed.")] = 50,
    top: Annotated[int, typer.Option(min=1, help="Proponents and opponents to print.")] = 10,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Name the training images that one image leans on."""
    if (image is None) == (seed is None):
        raise typer.BadParameter("give one of --image and --seed")
    from dtrak.attribution import Attributor
    from dtrak.attribution import as_json as to_json
    from dtrak.queries import generate_query, query_from_file
    from dtrak.sampling import GenerationSettings

    attributor = Attributor(StudyFolder(load_study(study)), device)
    if image is not None:
        query, described = query_from_file(attributor, image, label)
    else:
        assert seed is not None
        generation = GenerationSettings(seed, steps, label, attributor.folder.study.guidance)
        query, described = generate_query(attributor, generation), generation.as_dict()
    answer = attributor.attribute(query, attributor.features(query, [setting], by_block=False), setting, top)
    content = to_json(attributor.folder.study.name, described, answer)
    if as_json:
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return
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
    queries: Annotated[Path, typer.Option(exists=True, file_okay=False, help="A folder of images.")],
    out: Annotated[Path, typer.Option(help="The .npz file to write: scores [Q, N], train_ids, query_files.")],
    device: DeviceOption = "cpu",
) -> None:
    """Score every training image for every image of a folder."""
    from dtrak.attribution import Attributor
    from dtrak.queries import write_scores

    attributor = Attributor(StudyFolder(load_study(study)), device)
    with progress("scores", None) as advance:
        refused = write_scores(attributor, queries, out, setting, lambda done, total: advance(done, "", total))
    for name, reason in refused:
        errors.print(f"Left out {name}: {reason}")


def _write_example(folder: StudyFolder) -> None:
    from dtrak.ui.example import example_is_current, write_example

    if not example_is_current(folder):
        with errors.status("drawing the example for the home page"):
            write_example(folder)


def _prepare(folder: StudyFolder, force: bool = False) -> None:
    from dtrak.data import prepare as prepare_data
    from dtrak.data.table import is_prepared

    with exclusive(folder.root, f"study '{folder.study.name}'"):
        remember_source(folder)
        if is_prepared(folder.study, folder.data) and not force:
            return
        with progress(f"prepare {folder.study.name}", None) as advance:
            report = prepare_data(folder.study, folder.data, lambda number: advance(number, ""))
    errors.print(
        f"'{folder.study.name}': {report.train} training images, {report.heldout} held out, "
        f"{len(report.duplicates)} duplicates and {len(report.refused)} unusable files left out."
    )
    for refused in report.refused[:20]:
        errors.print(f"  {refused['id']}: {refused['reason']}")
    if report.refused or report.duplicates:
        errors.print(f"  All of them are named in {folder.data / 'report.json'}.")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
