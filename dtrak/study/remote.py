"""File exchange through a URL, for clusters whose nodes share no folder.

Input files of a study's tasks are uploaded and then downloaded by each node; files that tasks write are uploaded
and then downloaded by the driver. Any fsspec URL works (``s3://bucket/dtrak``, ``gs://…``, ``file:///mnt/…``):

    URL/inputs/<sha256>                  input files, by content
    URL/outputs/<digest>/<study>/…       files written by tasks with these inputs, laid out as in a workspace

Outputs are kept, so a lost workspace can be restored from them. The checkout and the files that a study's YAML file
names by path must be the same on every node.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import fsspec

from dtrak.config import Study, workspace
from dtrak.execution.engines import Engine, Results
from dtrak.execution.processes import Make
from dtrak.study.folder import CONDITIONING, LATENTS, StudyFolder, base_study
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import digest, noted, part_of, sha256_file

ALWAYS_READ = ("data", "model", "truth/queries.npz", "features/*/manifest.json")
TRAINING_STATE = "run"  # folder of a training's resume state; tasks do not need it


@dataclass(frozen=True)
class Mirrored:
    """An engine whose workers use separate workspaces.

    Attributes:
        engine: an engine whose workers are separate processes.
        url: a folder that the driver and all workers can read and write.
    """

    engine: Engine
    url: str

    def results(self, make: Make, arguments: tuple[Any, ...], tasks: Sequence[Any]) -> Results:
        """See :class:`dtrak.execution.engines.Engine`.

        Inputs are the files of the studies among ``arguments`` and, if tasks have this method, the folders that
        ``task.reads(folder)`` names.

        Raises:
            DtrakError: a file cannot be exchanged, or a task raised it.
        """
        if not tasks:
            return
        files, inputs = Files(self.url), dict[str, str]()
        for path in _inputs(arguments, tasks):
            sha = sha256_file(path)
            files.send(path, f"inputs/{sha}", unless_there=True)
            inputs[path.relative_to(workspace()).as_posix()] = sha
        outputs = f"outputs/{digest(inputs)}"
        given = (self.url, inputs, outputs, make, arguments)
        with contextlib.closing(self.engine.results(_Worker, given, tasks)) as results:
            for result, written in results:
                for name in written:  # in write order: a completion mark must follow its data
                    files.fetch(f"{outputs}/{name}", workspace() / name)
                yield result


def _inputs(arguments: tuple[Any, ...], tasks: Sequence[Any]) -> Iterator[Path]:
    studies = [argument for argument in arguments if isinstance(argument, Study)]
    for study in studies:
        if base := base_study(study):
            studies.append(base)
    for folder in map(StudyFolder, studies):
        wanted = {path for pattern in ALWAYS_READ for path in folder.root.glob(pattern)}
        wanted |= {path for task in tasks if hasattr(task, "reads") for path in task.reads(folder)}
        for path in sorted(wanted):
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file() and file.suffix not in (".part", ".lock") and TRAINING_STATE not in file.parts:
                    yield file


class Files:
    """The files below a URL, by name.

    Raises:
        DtrakError: by every method, if the URL cannot be opened, read or written.
    """

    def __init__(self, url: str):
        self._url = url
        with self._explained("opened"):
            self._system, self._root = fsspec.core.url_to_fs(url)

    def send(self, path: Path, name: str, unless_there: bool = False) -> None:
        """Upload a file.

        Args:
            unless_there: skip the upload if a file of that name and size exists.
        """
        target = f"{self._root}/{name}"
        with self._explained("written"):
            if unless_there and self._system.exists(target) and self._system.size(target) == path.stat().st_size:
                return
            self._system.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._system.put_file(str(path), target)

    def fetch(self, name: str, path: Path, sha: str | None = None) -> None:
        """Download a file; ``path`` appears complete or not at all.

        Args:
            sha: expected SHA-256 in hexadecimal.
        """
        part = part_of(path)
        try:
            with self._explained("read"):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._system.get_file(f"{self._root}/{name}", str(part))
                if sha is not None and sha256_file(part) != sha:
                    raise ValueError(f"the content of {name} does not match its hash; delete it")
                part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each fsspec file system raises its own types
            raise DtrakError(
                f"{self._url} could not be {what}: {error}",
                hint="--artefacts takes an fsspec URL, such as s3://bucket/folder (pip install s3fs) or file:///folder.",
            ) from error


def cache() -> Path:
    """The folder in which a machine caches downloaded inputs, by content."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dtrak" / "inputs"


class _Worker:
    """Runs tasks in a temporary workspace that holds the inputs and is removed with the worker."""

    def __init__(self, url: str, inputs: dict[str, str], outputs: str, make: Make, arguments: tuple[Any, ...]):
        self._files, self._outputs = Files(url), outputs
        self._scratch = tempfile.TemporaryDirectory(dir=_made(cache().parent), prefix="workspace-")
        Finalize(self, self._scratch.cleanup, exitpriority=0)  # a worker process may end without running atexit's
        self._workspace = Path(self._scratch.name)
        for name, sha in inputs.items():
            kept, path = cache() / sha, self._workspace / name
            if not kept.exists():
                self._files.fetch(f"inputs/{sha}", kept, sha)
            os.link(kept, _made(path.parent) / path.name)
        os.environ["DTRAK_WORKSPACE"] = self._scratch.name
        self._work: Callable[[Any], Any] = make(*arguments)

    def __call__(self, task: Any) -> tuple[Any, list[str]]:
        with noted() as written:
            result = self._work(task)
        last = reversed(dict.fromkeys(reversed(written)))
        names = [path.relative_to(self._workspace).as_posix() for path in last if path.exists()]
        names = [name for name in names if not {CONDITIONING, LATENTS} & {*name.split("/")}]  # nodes make their own
        for name in names:
            self._files.send(self._workspace / name, f"{self._outputs}/{name}")
        return result, names


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
