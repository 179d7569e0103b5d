"""Scripts and styles of the app's own components; nothing is built or fetched."""

import functools
from pathlib import Path


@functools.cache
def component_file(name: str) -> str:
    """The text of a file beside this one."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
