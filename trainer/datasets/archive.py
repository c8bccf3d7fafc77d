"""Reads the files of a zip, tar, tar.gz or folder one after the other, without ever writing one to disk.

Guards against what an archive can do to its reader: links, devices, bombs, encryption, damage. What the files mean is
the business of ``layout``.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from trainer.datasets.errors import DatasetError
from trainer.i18n import _

MAX_FILE_BYTES = 256 << 20
MAX_TOTAL_BYTES = 64 << 30
MAX_RATIO = 200  # unpacked to packed bytes, once more than a GiB was unpacked; images hardly shrink at all
_RATIO_MATTERS_BYTES = 1 << 30
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Member:
    """A regular file of the source; ``open`` works until the next member is asked for."""

    index: int  # its place in the source, the same in each pass
    name: str  # as it stands in the source, parts separated by /
    position: int  # bytes of the source gone through so far
    open: Callable[[], BinaryIO]


def source_bytes(source: Path) -> int:
    """The bytes that ``Member.position`` counts up to."""
    if source.is_dir():
        return sum(entry.stat().st_size for entry in _walk(source))
    return source.stat().st_size


def members(source: Path) -> Iterator[Member]:
    """All regular files of the source in its own order; links and devices are passed over.

    Raises ``DatasetError`` where the source is no archive, or damaged, encrypted or suspiciously large.
    """
    if source.is_dir():
        return _folder_members(source)
    if not source.is_file():
        raise DatasetError(
            _("There is no file or folder {name}.").format(name=source.name), _("Check the path, then try again.")
        )
    with source.open("rb") as file:
        magic = file.read(4)
    if magic in (b"PK\x03\x04", b"PK\x05\x06"):
        return _zip_members(source)
    return _tar_members(source, packed=magic[:2] == b"\x1f\x8b")


def _not_an_archive(source: Path) -> DatasetError:
    return DatasetError(
        _("{name} is not a zip, tar or tar.gz archive.").format(name=source.name),
        _("Pack the class folders as a zip, then import that."),
    )


def _damaged(source: Path) -> DatasetError:
    return DatasetError(
        _("{name} is damaged or incomplete.").format(name=source.name), _("Copy or pack it again, then import it.")
    )


class Budget:
    """Counts unpacked bytes against the limits. Raises ``DatasetError``."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._packed = source.stat().st_size
        self.total = 0

    def check_file(self, size: int) -> None:
        if size > MAX_FILE_BYTES:
            raise DatasetError(
                _("{name} contains a file of {size:,} MB, more than any image needs.").format(
                    name=self._source.name, size=size // 1_000_000
                ),
                _("Remove files above {size:,} MB, then import it again.").format(size=MAX_FILE_BYTES // 1_000_000),
            )

    def check_total(self, total: int) -> None:
        self.total = total
        bomb = total > _RATIO_MATTERS_BYTES and total > MAX_RATIO * self._packed
        if bomb or total > MAX_TOTAL_BYTES:
            raise DatasetError(
                _("{name} unpacks to more than {size:,} GB.").format(
                    name=self._source.name, size=min(total, MAX_TOTAL_BYTES) // 1_000_000_000
                ),
                _("Import fewer or smaller images."),
            )


# Folders -------------------------------------------------------------------------------------------------------------


def _walk(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Regular files in a fixed order; links are not followed."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            yield entry


def _folder_members(folder: Path) -> Iterator[Member]:
    position = 0
    for index, entry in enumerate(_walk(folder)):
        position += entry.stat().st_size
        path = Path(entry.path)
        yield Member(index, path.relative_to(folder).as_posix(), position, lambda path=path: path.open("rb"))  # type: ignore[misc]


# Zip -----------------------------------------------------------------------------------------------------------------

_ENCRYPTED, _UTF8 = 0x1, 0x800


def _zip_members(source: Path) -> Iterator[Member]:
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError):
        raise _damaged(source) from None
    budget, position = Budget(source), 0
    with archive:
        for index, info in enumerate(archive.infolist()):
            position += info.compress_size
            if not _is_regular(info):
                continue
            if info.flag_bits & _ENCRYPTED:
                raise DatasetError(
                    _("{name} is encrypted.").format(name=source.name), _("Pack it without a password, then import it.")
                )
            yield Member(index, _zip_name(info), position, lambda info=info: _open_zipped(archive, info, budget))  # type: ignore[misc]


def _is_regular(info: zipfile.ZipInfo) -> bool:
    """Neither a folder nor, by its Unix mode where it has one, a link or device."""
    kind = (info.external_attr >> 16) & 0o170000
    return not info.is_dir() and kind in (0, 0o100000)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The member's name; UTF-8 without its flag and backslashes occur and are what they look like."""
    name = info.filename
    if not info.flag_bits & _UTF8:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


def _open_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo, budget: Budget) -> BinaryIO:
    """The member's bytes; at most as many as its entry promises, checked by CRC. Raises OSError where it is damaged."""
    budget.check_file(info.file_size)
    budget.check_total(budget.total + info.file_size)
    try:
        return io.BytesIO(archive.read(info))
    except NotImplementedError:
        raise DatasetError(
            _("The archive uses a compression that can't be read here."), _("Pack it as a plain zip, then import it.")
        ) from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise OSError(str(error)) from None


# Tar -----------------------------------------------------------------------------------------------------------------


class _Guarded(io.RawIOBase):
    """A stream of unpacked bytes that refuses to be read too far or too much at once, whatever the headers in it say."""

    def __init__(self, stream: IO[bytes], budget: Budget) -> None:
        self._stream, self._budget = stream, budget

    def read(self, size: int = -1) -> bytes:
        self._budget.check_file(size if size >= 0 else MAX_FILE_BYTES + 1)
        self._budget.check_total(self._stream.tell() + size)
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._budget.check_total(offset)
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


def _tar_members(source: Path, *, packed: bool) -> Iterator[Member]:
    budget = Budget(source)
    with source.open("rb") as raw, _unpacking(raw, packed) as unpacked:
        stream = _Guarded(unpacked, budget)
        archive = _open_tar(stream, source)
        index = 0
        while (info := _next(archive, source)) is not None:
            if info.isreg():
                name, position = info.name, raw.tell()
                yield Member(index, name, position, lambda info=info: _open_tarred(archive, info, source, budget))  # type: ignore[misc]
            index += 1
        _check_end(stream, archive.offset, source)


@contextmanager
def _tar_errors(source: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeError, ValueError) as error:
        raise (error if isinstance(error, DatasetError) else _damaged(source)) from None


@contextmanager
def _unpacking(raw: BinaryIO, packed: bool) -> Iterator[IO[bytes]]:
    if not packed:
        yield raw
        return
    with gzip.GzipFile(fileobj=raw) as stream:
        yield stream  # type: ignore[misc]


def _open_tar(stream: _Guarded, source: Path) -> tarfile.TarFile:
    with _tar_errors(source):
        stream.read(tarfile.BLOCKSIZE)  # tells damage from what is no tar at all
        stream.seek(0)
    try:
        with _tar_errors(source):
            return tarfile.open(fileobj=stream, mode="r:")
    except tarfile.ReadError:
        raise _not_an_archive(source) from None


def _next(archive: tarfile.TarFile, source: Path) -> tarfile.TarInfo | None:
    archive.members = []  # type: ignore[attr-defined]  # else it keeps every header in memory
    try:
        with _tar_errors(source):
            return archive.next()
    except tarfile.TarError:
        raise _damaged(source) from None


def _check_end(stream: _Guarded, offset: int, source: Path) -> None:
    """Whether the tar ends where it says so: tarfile takes damage and a cut between two files for an end, too."""
    with _tar_errors(source):
        stream.seek(offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise _damaged(source)
        while stream.read(_CHUNK_BYTES):  # to the end, where gzip has its checksum
            pass


def _open_tarred(archive: tarfile.TarFile, info: tarfile.TarInfo, source: Path, budget: Budget) -> BinaryIO:
    """The member's bytes. A tar that breaks off here is damaged as a whole: nothing behind it can be found."""
    budget.check_file(info.size)
    try:
        with _tar_errors(source):
            file = archive.extractfile(info)
            assert file is not None
            with file:
                data = file.read()
    except tarfile.TarError:
        raise _damaged(source) from None
    if len(data) != info.size:
        raise _damaged(source)
    return io.BytesIO(data)
