"""A progress bar on standard error, or in a notebook."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def progress(title: str, total: int | None) -> Iterator[Callable[..., None]]:
    """Show a progress bar; yields ``advance(done, note, total)``.

    Args:
        total: number of steps; None if not known yet.
    """
    columns: list[Any] = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("remaining"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    ]
    with Progress(*columns, console=console, disable=not (sys.stderr.isatty() or console.is_jupyter)) as bar:
        task = bar.add_task(title, total=total, note="")

        def advance(done: int, note: str = "", total: int | None = total) -> None:
            bar.update(task, completed=done, note=note, total=total)

        yield advance
