"""Arguments and options that several commands share, and what they are combined into: a setting, an engine."""

import functools
import inspect
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import typer

from dtrak.execution.engines import Engine, local
from dtrak.execution.threads import THREADS
from dtrak.methods.choices import CHOICES, parse_damping
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting
from dtrak.methods.subsets import FAMILIES

StudyArgument = Annotated[
    str, typer.Argument(metavar="STUDY", help="The name of a study, or the path of its YAML file.")
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")]
WorkersOption = Annotated[
    int | None,
    typer.Option(min=1, help="Worker processes. Default: as many as the cores or GPUs allow.", show_default=False),
]
ThreadsOption = Annotated[int, typer.Option(min=1, help="Threads per task; the last digits of results depend on it.")]
EngineName = StrEnum("EngineName", {"local": "local", "ray": "ray"})
EngineOption = Annotated[EngineName, typer.Option(help="Run on this machine, or on a Ray cluster.")]
AddressOption = Annotated[
    str | None, typer.Option(help="Address of the Ray head node. Default: start a local cluster.", show_default=False)
]
ArtefactsOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Where workers exchange files if they share no folder (s3://…, gs://…, file://…).",
        show_default=False,
    ),
]
BatchOption = Annotated[int, typer.Option(min=1, help="Timesteps per forward pass; affects memory only.")]
ShardOption = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Compute only shard I of N, for job schedulers.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


MethodName = StrEnum("MethodName", {name: name for name in METHODS})  # type: ignore[misc]  # choices of --method
PrecisionName = StrEnum("PrecisionName", {"fp32": "fp32", "bf16": "bf16"})
TruthFamily = StrEnum("TruthFamily", {name: name for name in FAMILIES})  # type: ignore[misc]


MethodOption = Annotated[MethodName, typer.Option(help="Attribution method.")]
_TYPES = {int: int | None, str: str | None, parse_damping: str | None}


def _setting_options() -> dict[str, inspect.Parameter]:
    """--method, and an option for each choice of a setting, as :data:`dtrak.methods.choices.CHOICES` declares them."""
    kind = inspect.Parameter.KEYWORD_ONLY
    options = {"method": inspect.Parameter("method", kind, default=MethodName("dtrak"), annotation=MethodOption)}
    for name, choice in CHOICES.items():
        default = "" if choice.default is not None else " Default: the method's, or what is stored."
        option = typer.Option(choice.default, choice.flag, help=choice.help + default)
        options[name] = inspect.Parameter(name, kind, default=option, annotation=_TYPES[choice.read])
    return options


def _setting(method: Any, **given: Any) -> Setting:
    values = {}
    for name, value in given.items():
        choice = CHOICES[name]
        try:
            values[name] = choice.read(value) if isinstance(value, str) else value
        except ValueError:
            raise typer.BadParameter(f"'{value}' is not {choice.possible}", param_hint=choice.flag) from None
    return Setting(method.value, **values)


def _engine(
    workers: WorkersOption = None,
    threads: ThreadsOption = THREADS,
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
    options = dict(inspect.signature(_engine, eval_str=True).parameters)
    return _with_options(command, "engine_for", _engine, options)


def takes_setting(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a setting; it gets them as one argument, ``setting``."""
    return _with_options(command, "setting", _setting, _setting_options())


def _with_options(
    command: Callable[..., None], name: str, make: Callable[..., Any], options: dict[str, inspect.Parameter]
) -> Callable[..., None]:
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
