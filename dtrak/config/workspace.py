"""Finding and loading studies: the configuration folder and the workspace."""

import functools
import os
from pathlib import Path

import yaml
from pydantic import ValidationError

from dtrak.config.environment import environment
from dtrak.config.study import Study
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import read_note

_PACKAGE = Path(__file__).resolve().parents[1]
ROOT = _PACKAGE / "_share" if (_PACKAGE / "_share").is_dir() else _PACKAGE.parent  # installed, or a checkout
SOURCE_FILE = "study.json"
MOST_PROBLEMS, LONGEST = 10, 500  # problems listed, characters of each


def workspace() -> Path:
    """The folder in which studies are built: ``DTRAK_WORKSPACE``, or ``workspace`` in the current folder."""
    return environment().workspace.absolute()


def configs() -> Path:
    """The folder of study configurations: ``DTRAK_CONFIGS``, or the one shipped with dtrak."""
    return (environment().configs or ROOT / "configs").absolute()


def study_names() -> list[str]:
    """Names of the studies in ``configs/``, and of those in the workspace that were given by path."""
    named = {path.stem for path in configs().glob("*.yaml")}
    return sorted(named | {path.parent.name for path in workspace().glob(f"*/{SOURCE_FILE}")})


def study_source(name: str) -> Path | None:
    """The YAML file of a study in the workspace, if it was given by path; else None."""
    source = read_note(workspace() / name / SOURCE_FILE).get("source")
    return Path(source) if isinstance(source, str) else None


def load_study(name_or_path: str) -> Study:
    """Read a study by its name in ``configs/`` or by the path of its YAML file.

    Raises:
        DtrakError: no such study, not YAML, or a key that is unknown, missing or out of range.
    """
    path = configs() / f"{name_or_path}.yaml"
    if not path.is_file():
        path = study_source(name_or_path) or path
    if name_or_path.endswith((".yaml", ".yml")) or os.sep in name_or_path:
        path = Path(name_or_path).expanduser().resolve()
    if not path.is_file():
        raise DtrakError(
            f"There is no study '{name_or_path}'.",
            hint=f"Use one of {', '.join(study_names())}, or the path of a YAML file.",
        )
    try:
        text = path.read_text(encoding="utf-8")
    except ValueError as error:
        raise DtrakError(f"{path} is not valid YAML: {_short(error)}") from error
    return _parsed(path, text)


@functools.lru_cache(maxsize=64)
def _parsed(path: Path, text: str) -> Study:
    """The study in a YAML file; kept, as reading it takes tens of milliseconds, and a study may name another."""
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # dates and numbers out of range, deep nesting
        raise DtrakError(f"{path} is not valid YAML: {_short(error)}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise DtrakError(f"{path} must contain a mapping of names to values.")
    try:
        return Study.model_validate({"name": path.stem, **content, "source": path})
    except (ValidationError, TypeError, RecursionError) as error:
        if isinstance(error, ValidationError):
            found = [f"{_short(_where(e['loc']))}: {_short(e['msg'])}" for e in error.errors()]
        else:
            found = [_short(error)]
        lines = [f"  {line}" for line in found[:MOST_PROBLEMS]]
        more = len(found) - len(lines)
        problems = "\n".join(lines + ([f"  and {more} more"] if more else []))
        raise DtrakError(
            f"{path} is not a valid study:\n{problems}",
            hint="See docs/configuration.md for all keys.",
        ) from error


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def _where(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text or "file"
