"""The call that gives the answer on a page, in Python and on the command line."""

import shlex
from dataclasses import fields

from dtrak.app.runs import Run
from dtrak.methods.choices import CHOICES, plain
from dtrak.methods.settings import Setting


def as_python(study: str, run: Run, setting: Setting, top: int) -> str:
    """Python that computes a ranking; an image that a call cannot generate is read from ``image.png``."""
    lines = ["import dtrak", "", f"study = dtrak.open_study({study!r})"]
    told = f", label={run.label!r}" if run.label else ""
    if not _repeatable(run):
        picture = '"image.png"'
    else:
        one = run.settings
        assert one is not None
        negative = f", negative={one.negative!r}" if one.negative else ""
        lines.append(
            f"picture = study.generate(seed={one.seed}{told}, steps={one.steps}, guidance={one.guidance:g}{negative})"
        )
        picture, told = "picture", ""
    choices = "".join(f", {name}={value!r}" for name, value in _changed(setting).items())
    part = "" if run.region is None else f", region=({run.region.text.replace(',', ', ')})"
    lines.append(f"ranking = study.attribute({picture}{told}, method={setting.method!r}{choices}{part}, top={top})")
    lines.append("ranking.to_pandas()")
    return "\n".join(lines)


def as_command(study: str, run: Run, setting: Setting, top: int) -> str:
    """The command that prints a ranking; an image that a call cannot generate is read from ``image.png``."""
    words = ["dtrak", "attribute", study]
    if not _repeatable(run):
        words += ["--image", "image.png"]
    else:
        one = run.settings
        assert one is not None
        words += ["--seed", str(one.seed), "--steps", str(one.steps), "--guidance", f"{one.guidance:g}"]
        words += ["--negative", one.negative] if one.negative else []
    if run.label:
        words += ["--label", run.label]
    words += ["--method", setting.method]
    for name, value in _changed(setting).items():
        words += [CHOICES[name].flag, plain(value)]
    if run.region is not None:
        words += ["--region", run.region.text]
    return shlex.join([*words, "--top", str(top), "--json"])


def _repeatable(run: Run) -> bool:
    """Whether a call can generate the image again: it was generated, with the LoRA at its own strength."""
    return run.settings is not None and run.settings.lora_scale == 1


def _changed(setting: Setting) -> dict[str, object]:
    defaults = {f.name: f.default for f in fields(Setting) if f.name != "method"}
    return {name: getattr(setting, name) for name in defaults if getattr(setting, name) != defaults[name]}
