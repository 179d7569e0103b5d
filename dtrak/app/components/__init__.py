"""Templates, scripts and styles of the app's own components; used as they are, without a build step."""

import functools
from pathlib import Path


@functools.cache
def component_file(name: str) -> str:
    """The text of a file in this folder."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
