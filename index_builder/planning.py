"""The command ``plan``: estimate what a study costs, and choose an index."""

import json
from typing import Annotated

import typer

from dtrak.config import load_study
from dtrak.study.folder import StudyFolder
from index_builder.options import JsonOption


def plan(
    studies: Annotated[
        list[str], typer.Argument(metavar="STUDY...", help="Names in configs/, or paths of YAML files.")
    ],
    images: Annotated[
        int | None, typer.Option(min=1, help="Number of training images, if not prepared yet.", show_default=False)
    ] = None,
    ram: Annotated[
        str | None, typer.Option(help="Memory limit for an index, e.g. 8GB; also choose one.", show_default=False)
    ] = None,
    recall: Annotated[float, typer.Option(min=0, max=1, help="Required recall@10, with --ram.")] = 0.95,
    as_json: JsonOption = False,
) -> None:
    """Estimate time and disk space to build and evaluate studies; with --ram, also choose an index."""
    from dtrak.build.index_plan import plan_indexes
    from dtrak.build.plan import DEVICES, estimate
    from dtrak.utils.text import in_words, parse_size, size_in_words

    found = [estimate(StudyFolder(load_study(name)), images) for name in studies]
    limit = None if ram is None else parse_size(ram, "--ram")
    indexes = [
        [] if limit is None else plan_indexes(StudyFolder(one.study), one.images, limit, recall) for one in found
    ]
    if as_json:
        content = [
            one.as_dict() | ({"indexes": [index.as_dict() for index in chosen]} if chosen else {})
            for one, chosen in zip(found, indexes, strict=True)
        ]
        print(json.dumps(content, indent=2))
        return
    for one, chosen in zip(found, indexes, strict=True):
        print(
            f"{one.study.name}: {one.images:,} images, {one.passes.parameters:,} parameters, {one.passes.tuned:,} tuned"
        )
        print(f"  {'':42}{'disk':>9}" + "".join(f"{device.title:>14}" for device in DEVICES))
        for step in one.steps:
            times = "".join(f"{in_words(step.seconds(device, one.study)):>14}" for device in DEVICES)
            print(f"  {step.title:42}{size_in_words(step.bytes):>9}{times}")
        for line in one.passes.memory.lines():
            print(f"  {line}")
        for index in chosen:
            print(index.text)
    print("Estimates: operations counted on the traced network, divided by the rates in docs/scale.md.")
