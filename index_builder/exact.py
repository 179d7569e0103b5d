"""Commands that differentiate through the training: exact, check-exact."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dtrak.config import load_study
from dtrak.methods.query import Query
from dtrak.study.folder import StudyFolder
from dtrak.utils.progress import progress
from index_builder.options import DeviceOption, EngineFor, JsonOption, StudyArgument, takes_engine


@takes_engine
def exact(
    study: StudyArgument,
    engine_for: EngineFor,
    image: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="An image file to attribute.")] = None,
    seed: Annotated[list[int] | None, typer.Option(min=0, help="Generate an image from this seed; repeatable.")] = None,
    label: Annotated[str | None, typer.Option(help="Class or prompt to condition on. Default: unconditional.")] = None,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Denoising steps, with --seed.")] = 50,
    evaluation: Annotated[
        bool,
        typer.Option(
            "--evaluation", help="Instead, all evaluation queries; these alone are shared out to workers or a cluster."
        ),
    ] = False,
    double: Annotated[bool, typer.Option("--float64", help="Compute in float64; nothing is stored.")] = False,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Compute the exact influence on images by differentiating through the training; resumable."""
    from dtrak.build.exact import exact_of_evaluation
    from dtrak.evaluation.exact import exact_influence

    if evaluation:
        if image or seed or double or as_json:
            raise typer.BadParameter("--evaluation goes with none of --image, --seed, --float64 and --json")
        folder = StudyFolder(load_study(study))
        with progress(f"exact {folder.study.name}", None) as show:
            growth = exact_of_evaluation(
                folder, engine_for(device), lambda done, total: show(done, "queries", total), device
            )
        print(f"The adjoint grew {growth:.3g}-fold." if growth else "All of them were computed before.")
        return
    folder, queries = _queries(study, image, seed or [], label, steps, device)
    with progress(f"exact {folder.study.name}", None) as show:
        found = exact_influence(folder, queries, lambda done, total: show(done, "steps", total), double, device)
    if as_json:
        named = [dict(zip(folder.table.train_ids, row.tolist(), strict=True)) for row in found.scores]
        print(json.dumps({"growth": found.growth, "smooth": found.smooth, "scores": named}, indent=2))
        return
    words = "smooth" if found.smooth else "not smooth: the derivative says little about removals"
    print(f"The adjoint grew {found.growth:.3g}-fold: this training is {words}.")
    if not double:
        print(f"See the ranking with: python -m index_builder attribute {study} --method exact")


def check_exact(
    study: StudyArgument,
    images: Annotated[str, typer.Option(help="Ids of training images, separated by commas.")],
    image: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="An image file to attribute.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Generate an image from this seed.")] = None,
    label: Annotated[str | None, typer.Option(help="Class or prompt to condition on. Default: unconditional.")] = None,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Denoising steps, with --seed.")] = 50,
    delta: Annotated[float, typer.Option(min=1e-9, max=1, help="How far weights are changed.")] = 0.01,
    double: Annotated[bool, typer.Option("--float64", help="Compute in float64.")] = False,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Compare exact influence with trainings in which single images weigh 1 ± delta."""
    from dtrak.evaluation.exact import check_exact_influence

    folder, (query,) = _queries(study, image, [] if seed is None else [seed], label, steps, device)
    with progress(f"check-exact {folder.study.name}", None) as show:
        found, whole = check_exact_influence(
            folder, query, images.split(","), delta, double, lambda done, total: show(done, "steps", total), device
        )
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=2))
        return
    print(f"The adjoint grew {whole.growth:.3g}-fold.")
    for one in found:
        print(f"{one.id}: exact {one.exact:+.4e}, difference {one.difference:+.4e}")


def _queries(
    study: str, image: Path | None, seeds: list[int], label: str | None, steps: int, device: str
) -> tuple[StudyFolder, list[Query]]:
    if (image is None) == (not seeds):
        raise typer.BadParameter("give either --image or --seed, or --evaluation")
    from dtrak.methods.attributor import Attributor
    from dtrak.methods.queries import generate_query, query_from_file
    from dtrak.models.generation import GenerationSettings

    attributor = Attributor(StudyFolder(load_study(study)), device)
    if image is not None:
        return attributor.folder, [query_from_file(attributor, image, label)[0]]
    guidance = attributor.folder.study.guidance
    return attributor.folder, [generate_query(attributor, GenerationSettings(s, steps, label, guidance)) for s in seeds]
