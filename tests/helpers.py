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
    """Path and hash of every file of a study's features and indexes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for part in (folder / "features", folder / "index")
        for path in sorted(part.rglob("*"))
        if path.is_file() and not path.name.startswith("example")
    }


def wait_until(condition, seconds=5.0):
    """Return once the condition holds; fail after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)
