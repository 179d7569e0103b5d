"""Atomic files: everything is written as ``name.HOST-PID.part``, flushed, then renamed to ``name``.

So ``name`` is always complete; a ``.part`` file whose writer no longer runs is left over from an interruption.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock, Timeout

from dtrak.utils.errors import DtrakError

FREE = 20 * 2**30  # bytes of the disk that are left free by what need not be kept
logger = logging.getLogger(__name__)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open ``path`` for binary writing so that it appears complete or not at all.

    Raises:
        DtrakError: the disk is full or the folder is not writable; ``path`` is unchanged.
    """
    part = part_of(path)
    try:
        with _disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    _note(path)


@contextlib.contextmanager
def atomic_files(folder: Path) -> Iterator[Path]:
    """A scratch folder whose files are moved to ``folder`` at the end, each atomically.

    Raises:
        DtrakError: the disk is full or the folder is not writable.
    """
    part = part_of(folder)
    try:
        with _disk_errors(folder):
            part.mkdir(parents=True)
            yield part
            for path in sorted(path for path in part.rglob("*") if path.is_file()):
                target = folder / path.relative_to(part)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
                _note(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def part_of(path: Path) -> Path:
    """The temporary name of ``path`` while this process writes it; unique to the process."""
    return path.with_name(f"{path.name}.{_writer()}.part")


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DtrakError(
            f"Could not write {path}: {error.strerror or error}.",
            hint="Free disk space or set DTRAK_WORKSPACE to another folder; then run the same command to resume.",
        ) from error


_noting: list[list[Path]] = []


@contextlib.contextmanager
def noted() -> Iterator[list[Path]]:
    """Collect the files that this process writes in the block, in the order in which they are completed."""
    written: list[Path] = []
    _noting.append(written)
    try:
        yield written
    finally:
        _noting[:] = [other for other in _noting if other is not written]


def _note(path: Path) -> None:
    for written in _noting:
        written.append(path)


def _host() -> str:
    return socket.gethostname().replace(".", "_")


def _writer() -> str:
    return f"{_host()}-{os.getpid()}"


def remove_leftovers(folder: Path) -> None:
    """Delete ``.part`` files of processes on this machine that no longer run, and those that name no process."""
    for part in folder.rglob("*.part"):
        host, dash, number = part.name.removesuffix(".part").rpartition(".")[2].rpartition("-")
        if not dash or (host == _host() and number.isdecimal() and not _alive(int(number))):
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically."""
    with atomic_write(path) as file:
        file.write(content)


def has_room(folder: Path, size: int = 0) -> bool:
    """Whether ``FREE`` bytes of the disk stay free beside ``size`` more: for what need not be kept."""
    return shutil.disk_usage(folder).free >= FREE + size


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write ``value`` as key-sorted JSON, atomically.

    Args:
        indent: None writes a single line, for long lists of numbers.
    """
    write_bytes(path, (json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        DtrakError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DtrakError(f"Could not read {path}: {error}.") from error


def read_note(path: Path) -> dict[str, Any]:
    """A JSON object that can be made again; empty if it is missing, or damaged (which is logged)."""
    if not path.exists():
        return {}
    try:
        found = read_json(path)
        if isinstance(found, dict):
            return found
        logger.warning("%s does not contain a JSON object; it counts as missing.", path)
    except DtrakError as error:
        logger.warning("%s It counts as missing.", error.message)
    return {}


def write_npy(path: Path, array: np.ndarray) -> None:
    """Write ``array`` as ``.npy``, atomically."""
    with atomic_write(path) as file:
        np.save(file, array, allow_pickle=False)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any, length: int = 16) -> str:
    """A short hexadecimal digest of a JSON-serialisable value, the same on every machine."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]


@contextlib.contextmanager
def exclusive(folder: Path, what: str) -> Iterator[None]:
    """Lock ``folder`` for one writer, without waiting. The lock of a killed process is released.

    Args:
        what: what is locked, for the error message.

    Raises:
        DtrakError: another process holds the lock.
    """
    lock = FileLock(folder / ".lock")
    with _disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:  # an OSError too, but nothing is wrong with the disk
            raise DtrakError(
                f"Another process is working on {what}.",
                hint="Wait for it to finish, or stop it; then run the same command again.",
            ) from error
    try:
        yield
    finally:
        lock.release()
