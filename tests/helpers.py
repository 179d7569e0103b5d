"""What tests of several packages use: the command line, hashes of what was built, waiting."""

import hashlib
import time

from typer.testing import CliRunner

from dtrak.utils.errors import DtrakError
from index_builder.cli import app

runner = CliRunner()


def call(*arguments):
    """The result of a command; its :class:`DtrakError` is raised."""
    result = runner.invoke(app, [str(a) for a in arguments])
    if isinstance(result.exception, DtrakError):
        raise result.exception
    return result


def hashes(folder):
    """Path and hash of every file below a folder; there must be some."""
    found = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock" and not path.name.startswith("example")
    }
    assert found, f"{folder} is empty"
    return found


def build_hashes(root):
    """Path and hash of every file of a study's features and indexes."""
    return {f"{part}/{path}": found for part in ("features", "index") for path, found in hashes(root / part).items()}


def wait_until(condition, seconds=5.0):
    """Return once the condition holds; fail after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)
