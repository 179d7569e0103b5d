"""``python -m benchmarks.app``: time from the command to the first page, in a real browser."""

import os
import socket
import subprocess
import sys
import time
import urllib.request

from playwright.sync_api import sync_playwright

from benchmarks.report import Row, publish
from dtrak.config import ROOT
from tests.conftest import chromium

STARTS = 3


def free_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_seconds(path: str, ready: str) -> tuple[float, float]:
    """Seconds from starting the app to the server's first answer, and until the selector ``ready`` is on the page."""
    port = free_port()
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port), "--server.headless=true"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page()
        start = time.perf_counter()
        app = subprocess.Popen(command, cwd=ROOT, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.02)
            answered = time.perf_counter() - start
            page.goto(f"http://127.0.0.1:{port}/{path}")
            page.locator("h1").first.wait_for()
            page.locator(ready).first.wait_for()
            return answered, time.perf_counter() - start
        finally:
            app.terminate()
            app.wait()
            browser.close()


def main() -> None:
    """Run the benchmark, print the table and write it to the docs."""
    answered, drawn = sorted(start_seconds("", "img") for _ in range(STARTS))[STARTS // 2]
    deep = sorted(start_seconds("generate", "[data-testid=stBaseButton-primary]")[1] for _ in range(STARTS))
    rows: list[Row] = [
        ("cold start: from the command to the server's answer", f"{answered:.1f} s", ""),
        ("cold start: to the first page with its pictures, in Chromium", f"{drawn:.1f} s", "goal 4 s"),
        ("cold start at Generate, to its button: torch, diffusers and the model too", f"{deep[STARTS // 2]:.1f} s", ""),
    ]
    publish("python -m benchmarks.app", rows)


if __name__ == "__main__":
    main()
