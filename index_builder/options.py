"""What a command takes: its arguments and options, and what several of them make together: a setting, an engine."""

import functools
import inspect
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import typer

from dtrak.config import LAST
from dtrak.execution.engines import Engine, local
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting, parse_damping

StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="A name in configs/, or the path of a YAML file.")]
DeviceOption = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.")]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Processes, or tasks at a time. [default: what the cores or GPUs hold]", show_default=False
    ),
]
ThreadsOption = Annotated[int, typer.Option(min=1, help="Threads of a task; results depend on it in the last digits.")]
EngineName = StrEnum("EngineName", {"local": "local", "ray": "ray"})  # type: ignore[misc]
EngineOption = Annotated[EngineName, typer.Option(help="Who works: this machine, or a Ray cluster.")]
AddressOption = Annotated[
    str | None, typer.Option(help="Of the Ray cluster's head. [default: a new one here]", show_default=False)
]
ArtefactsOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="For a cluster without a shared folder: where files are exchanged (s3://…, gs://…, file://…).",
        show_default=False,
    ),
]
BatchOption = Annotated[int, typer.Option(min=1, help="Timesteps per forward pass; bounds memory, changes no result.")]
ShardOption = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Only this share of the work, for schedulers.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


MethodName = StrEnum("MethodName", {name: name for name in METHODS})  # type: ignore[misc]  # choices of --method
PrecisionName = StrEnum("PrecisionName", {"fp32": "fp32", "bf16": "bf16"})  # type: ignore[misc]
TruthFamily = StrEnum("TruthFamily", {"lds": "lds", "fit": "fit"})  # type: ignore[misc]


MethodOption = Annotated[MethodName, typer.Option(help="How to score.")]
DampingOption = Annotated[
    str | None, typer.Option(help="λ relative to the mean eigenvalue, or auto. Default: the method's.")
]
OutputOption = Annotated[str | None, typer.Option(help="Output function. Default: the method's.")]
TimestepsOption = Annotated[int | None, typer.Option(min=1, max=1000, help="K. Default: as stored.")]
StrategyOption = Annotated[
    str, typer.Option(help="K timesteps spread over all (uniform), or the first K (cumulative).")
]
DrawsOption = Annotated[int, typer.Option(min=1, help="Noises for each timestep.")]
DimOption = Annotated[
    int | None, typer.Option("--dim", min=1, help="Only the first so many projected columns. Default: all.")
]
ProjectionOption = Annotated[int, typer.Option("--projection-seed", min=0, help="Which of the stored projections.")]
CheckpointOption = Annotated[str, typer.Option(help="Which of the study's models, e.g. checkpoint-0.50.")]
NormaliserOption = Annotated[
    str | None, typer.Option(help="Divide scores: none, norm, influence, cosine. Default: the method's.")
]


def _setting(
    method: MethodOption = MethodName("dtrak"),
    damping: DampingOption = None,
    output: OutputOption = None,
    timesteps: TimestepsOption = None,
    strategy: StrategyOption = "uniform",
    draws: DrawsOption = 1,
    dim: DimOption = None,
    projection_seed: ProjectionOption = 0,
    checkpoint: CheckpointOption = LAST,
    normaliser: NormaliserOption = None,
) -> Setting:
    try:
        number = None if damping is None else parse_damping(damping)
    except ValueError:
        raise typer.BadParameter(f"'{damping}' is neither a number nor auto", param_hint="--damping") from None
    choices: dict[str, Any] = {"strategy": strategy, "normaliser": normaliser}
    return Setting(
        method.value, output, timesteps, draws=draws, projection_dim=dim, projection_seed=projection_seed,
        damping=number, checkpoint=checkpoint, **choices,
    )  # fmt: skip


def _engine(
    workers: WorkersOption = None,
    threads: ThreadsOption = 1,
    engine: EngineOption = EngineName("local"),
    address: AddressOption = None,
    artefacts: ArtefactsOption = None,
) -> Callable[[str], Engine]:
    if engine.value == "local":
        for name, given in (("--address", address), ("--artefacts", artefacts)):
            if given is not None:
                raise typer.BadParameter("belongs to --engine ray", param_hint=name)
        return lambda device: local(workers, threads, device)
    from dtrak.execution.ray_engine import Ray
    from dtrak.study.remote import Mirrored

    def on_ray(device: str) -> Engine:
        if device not in ("cpu", "cuda"):  # a task sees one GPU, whichever it is
            raise typer.BadParameter("is cpu or cuda with --engine ray", param_hint="--device")
        ray = Ray(address, workers, threads, 1 if device == "cuda" else 0)
        return Mirrored(ray, artefacts) if artefacts else ray

    return on_ray


EngineFor = Callable[[str], Engine]


def takes_engine(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of an engine; it gets one argument, ``engine_for``: from a device to the engine."""
    return _with_options(command, "engine_for", _engine)


def takes_setting(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a setting; it gets them as one argument, ``setting``."""
    return _with_options(command, "setting", _setting)


def _with_options(command: Callable[..., None], name: str, make: Callable[..., Any]) -> Callable[..., None]:
    options = inspect.signature(make, eval_str=True).parameters
    own = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        made = make(**{option: given.pop(option) for option in options})
        command(**{name: made}, **given)

    first = [p for p in own.parameters.values() if p.name != name]
    # Keyword-only, so that options with defaults may stand before those without.
    together = [p.replace(kind=p.KEYWORD_ONLY) for p in [*first, *options.values()]]
    wrapped.__signature__ = own.replace(parameters=together)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in together} | {"return": None}
    return wrapped
