"""Writing benchmark tables into the docs, between marks that name the command."""

import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dtrak.config import ROOT

END = "<!-- end of table -->\n"
Row = tuple[str, str, str]


def median_seconds(work: Callable[[], object], repeats: int = 9) -> float:
    """Median wall time of ``work`` after one warm-up."""
    return medians([work], repeats)[0]


def medians(works: Sequence[Callable[[], object]], repeats: int = 9) -> list[float]:
    """Median wall times of several functions after one warm-up, interleaved so that other load affects all equally."""
    times: list[list[float]] = [[] for _ in works]
    for turn in range(repeats + 1):
        for work, of_work in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            if turn:
                of_work.append(time.perf_counter() - start)
    return [statistics.median(of_work) for of_work in times]


def machine() -> str:
    """A description of the processor, cores and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    found = re.search(r"model name\s*: (.*)", text)
    flags = [name for name in ("avx2", "avx512f", "avx512_bf16") if f" {name}" in text]
    processor = found[1] if found else platform.processor()
    return (
        f"{processor} ({', '.join(flags)}), {os.cpu_count()} cores, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = ("what", "measured", "against")) -> str:
    """A Markdown table: by default what was measured, the result, and what it is compared with."""
    marks = "|".join(["---", *("---" if name == "against" else "--:" for name in header[1:])])
    lines = [f"| {' | '.join(line)} |" for line in [header, *rows]]
    return "\n".join([lines[0], f"|{marks}|", *lines[1:]]) + "\n"


def write_table(document: str, command: str, text: str) -> None:
    """Replace the table between its marks in a file of ``docs/``.

    Raises:
        ValueError: the file has no mark for the command.
    """
    path, start = ROOT / "docs" / document, f"<!-- table: {command} -->\n"
    before, _, rest = path.read_text(encoding="utf-8").partition(start)
    if not rest:
        raise ValueError(f"{path} has no mark '{start.strip()}'")
    path.write_text(before + start + text + END + rest.partition(END)[2], encoding="utf-8")


def publish(
    command: str,
    rows: Sequence[Sequence[str]],
    header: Sequence[str] = ("what", "measured", "against"),
    document: str = "benchmarks.md",
    about: str = "",
) -> None:
    """Print a table and write it to a file of ``docs/``, with the command, the machine and what else is said of it."""
    text = f"`{command}` on {machine()}.{about}\n\n{table(rows, header)}"
    print(text)
    write_table(document, command, text)


def screenshot(figure: Any, name: str) -> None:
    """Write a Plotly figure of fixed size to a PNG file of ``docs/``, as Chromium draws it."""
    from playwright.sync_api import sync_playwright

    from tests.conftest import chromium

    viewport = {"width": figure.layout.width + 20, "height": figure.layout.height + 20}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport=viewport)  # type: ignore[arg-type]
        page.set_content(figure.to_html(include_plotlyjs=True))
        page.wait_for_selector(".js-plotly-plot .xtick")
        page.screenshot(path=str(ROOT / "docs" / name))
        browser.close()
