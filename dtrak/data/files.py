"""Reading files of a folder, zip or tar archive by name, without unpacking."""

import hashlib
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from dtrak.utils.errors import DtrakError

# What the archive modules raise for damaged, encrypted or odd archives.
_DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, ValueError,
    RuntimeError, KeyError,
)  # fmt: skip
LARGEST = 2**30  # bytes of a file in an archive; a small archive may claim to hold far more than memory does


class Files:
    """The files of a folder or archive, by name.

    Args:
        path: a folder, or a zip or tar archive.
        md5: accepted MD5 checksums of an archive; any if empty.

    Raises:
        DtrakError: the path does not exist, the archive is damaged or has another checksum, or a name in
            it points outside.
    """

    def __init__(self, path: Path, md5: Sequence[str] = ()):
        self.path = path
        if not path.exists():
            raise DtrakError(f"{path} does not exist.", hint="data.path is relative to the YAML file.")
        if path.is_file() and md5:
            _check(path, md5)
        try:
            self.names, self._read = _opened(path)
        except _DAMAGE as error:
            raise self._damaged(error) from error
        for name in self.names:
            inside = PurePosixPath(name.replace("\\", "/"))
            if inside.is_absolute() or ".." in inside.parts:
                raise DtrakError(
                    f"{path} contains the name '{name}', which points outside the archive.",
                    hint="Do not use this archive.",
                )
        self._by_end: dict[str, str] = {}
        for name in self.names:
            parts = PurePosixPath(name).parts
            for depth in (1, 2, 3):
                self._by_end.setdefault("/".join(parts[-depth:]), name)

    def has(self, end: str) -> bool:
        """Whether some file's path ends with ``end`` (up to three components)."""
        return end in self._by_end

    def read(self, end: str) -> bytes:
        """The content of the first file whose path ends with ``end``.

        Raises:
            DtrakError: there is no such file, or it is damaged.
        """
        if end not in self._by_end:
            raise DtrakError(f"{self.path} has no file '{end}'.", hint="Check that it is the right, complete data set.")
        try:
            return self._read(self._by_end[end])
        except _DAMAGE as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> DtrakError:
        return DtrakError(f"{self.path} is damaged: {error}.", hint="Download it again.")


def _opened(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    if path.is_dir():
        names = [p.relative_to(path).as_posix() for p in sorted(path.rglob("*")) if p.is_file()]
        return names, lambda name: (path / name).read_bytes()
    if zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)
        sizes = {info.filename: info.file_size for info in archive.infolist() if not info.is_dir()}
        return list(sizes), lambda name: archive.read(_fits(name, sizes[name]))
    tar = tarfile.open(path)  # noqa: SIM115  # stays open for reading
    members = {m.name: m for m in tar.getmembers()}

    def read(name: str) -> bytes:
        file = tar.extractfile(members[_fits(name, members[name].size)])
        assert file is not None
        return file.read()

    return [name for name, member in members.items() if member.isfile()], read


def _fits(name: str, size: int) -> str:
    if size > LARGEST:
        raise ValueError(f"'{name}' would take {size:,} bytes")
    return name


def _check(path: Path, md5: Sequence[str]) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found not in [known.lower() for known in md5]:
        raise DtrakError(
            f"The MD5 of {path} is {found}, not {' or '.join(md5)}.",
            hint="The download is incomplete or a different file. Download it again, or correct data.md5.",
        )
