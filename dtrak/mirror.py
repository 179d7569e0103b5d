"""A workspace at a URL, for engines whose machines share no folder.

What the tasks of a study read is sent there and fetched by each machine; what they write is sent there and fetched
by the process that asked. Any URL that fsspec opens will do (``s3://bucket/dtrak``, ``gs://…``, ``file:///mnt/…``):

    URL/inputs/<sha256>             what tasks read, by content
    URL/<study>/features/…          what tasks wrote, as in a workspace; it stays, should the asking machine be lost

The checkout, and what a study's YAML file names by path, are still expected to be the same on every machine.
"""

import contextlib
import getpass
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from dtrak.config import Study, load_study, workspace
from dtrak.engines import Engine, Results
from dtrak.errors import DtrakError
from dtrak.files import atomic_write, digest, noted, sha256_file
from dtrak.processes import Make
from dtrak.studies import StudyFolder

READ = ("data", "model", "retrained", "truth/queries.npz", "features/*/manifest.json")


@dataclass(frozen=True)
class Mirrored:
    """An engine whose workers have workspaces of their own.

    Attributes:
        engine: whose workers are other processes than this one.
        url: of a folder that all can read and write.
    """

    engine: Engine
    url: str

    def results(self, make: Make, arguments: tuple[Any, ...], tasks: Sequence[Any]) -> Results:
        """See :class:`dtrak.engines.Engine`; the studies among ``arguments`` are what tasks read."""
        if not tasks:
            return
        files = _Files(self.url)
        given = {}
        for study in _with_bases([argument for argument in arguments if isinstance(argument, Study)]):
            for path in _read_by_tasks(StudyFolder(study).root):
                sha = sha256_file(path)
                files.send(path, f"inputs/{sha}", unless_there=True)
                given[path.relative_to(workspace()).as_posix()] = sha
        with contextlib.closing(self.engine.results(_worker, (self.url, given, make, arguments), tasks)) as results:
            for result, written in results:
                for name in written:  # in their order: what marks a shard complete comes after it
                    files.fetch(name, workspace() / name)
                yield result


def _with_bases(studies: Sequence[Study]) -> list[Study]:
    found = list(studies)
    for study in found:
        if study.model.base:
            found.append(load_study(study.model.base))
    return found


def _read_by_tasks(root: Path) -> Iterator[Path]:
    for pattern in READ:
        for path in sorted(root.glob(pattern)):
            inside = sorted(path.rglob("*")) if path.is_dir() else [path]
            yield from (p for p in inside if p.is_file() and p.suffix != ".part" and p.name != ".lock")


class _Files:
    """The files below a URL, by their names.

    Raises:
        DtrakError: of every method: the URL cannot be opened, read or written.
    """

    def __init__(self, url: str):
        self._url = url
        with self._told("opened"):
            self._system, self._root = fsspec.core.url_to_fs(url)

    def send(self, path: Path, name: str, unless_there: bool = False) -> None:
        """Upload a file.

        Args:
            unless_there: keep one of the same name and size.
        """
        target = f"{self._root}/{name}"
        with self._told("written"):
            if unless_there and self._system.exists(target) and self._system.size(target) == path.stat().st_size:
                return
            self._system.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._system.put_file(str(path), target)

    def fetch(self, name: str, path: Path) -> None:
        """Download a file; ``path`` appears whole or not at all."""
        with self._told("read"), self._system.open(f"{self._root}/{name}", "rb") as source, atomic_write(path) as file:
            shutil.copyfileobj(source, file)

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except DtrakError:
            raise
        except Exception as error:  # each file system has errors of its own
            raise DtrakError(
                f"{self._url} could not be {what}: {error}",
                hint="--artefacts takes a URL of fsspec, as s3://bucket/folder (pip install s3fs) or file:///folder.",
            ) from error


def _worker(url: str, given: dict[str, str], make: Make, arguments: tuple[Any, ...]) -> Callable[[Any], Any]:
    """In a worker: a workspace of this machine that holds what was given, and the work in it."""
    files, here = _Files(url), Path(tempfile.gettempdir()) / f"dtrak-{getpass.getuser()}"
    own = here / "workspaces" / digest([url, given])
    for name, sha in given.items():
        kept, target = here / "inputs" / sha, own / name
        if not (kept.exists() and sha256_file(kept) == sha):
            files.fetch(f"inputs/{sha}", kept)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):  # another worker of this machine was quicker
                os.link(kept, target)
    os.environ["DTRAK_WORKSPACE"] = str(own)
    work = make(*arguments)

    def run(task: Any) -> tuple[Any, list[str]]:
        with noted() as written:
            result = work(task)
        names = [path.relative_to(own).as_posix() for path in dict.fromkeys(written) if path.exists()]
        for name in names:
            files.send(own / name, name)
        return result, names

    return run
