"""Where files are: a path, glob, folder or URL becomes a list of files, and a file's first bytes say what it is.

Files of a folder come in name order, hidden ones (`.` or `_` first) left out. Reads through pyarrow's file systems,
so what those reach (local disks, S3, GCS, HDFS) is reached here too. Knows nothing of what is in the files.
"""

from __future__ import annotations

import glob
import itertools
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote
from zipfile import BadZipFile

import pyarrow as pa
from pyarrow import fs

from narrows.errors import DataError, NarrowsError
from narrows.sources.source import FILES

Format = Literal["parquet", "npy", "npz", "idx", "text"]
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_DAMAGE = (pa.ArrowException, OSError, EOFError, UnicodeError, BadZipFile, zlib.error, MemoryError, RuntimeError)


@dataclass(frozen=True)
class File:
    """One file to read.

    Args:
        name: as it is shown in messages.
        path: within its file system.
        system: that file system.
        keys: values of the `key=value` folders above it; None where Hive wrote its word for missing.
    """

    name: str
    path: str
    system: fs.FileSystem = field(default_factory=fs.LocalFileSystem)
    keys: dict[str, str | None] = field(default_factory=dict)

    @property
    def local(self) -> bool:
        """Whether the path can be opened by the operating system, and so be memory-mapped."""
        return isinstance(self.system, fs.LocalFileSystem)

    def open(self) -> Any:
        """The raw bytes, seekable."""
        return self.system.open_input_file(self.path)

    def stream(self) -> Any:
        """The bytes in order, decompressed if their first ones say gzip or Zstandard."""
        return self.system.open_input_stream(self.path, compression=self._compression())

    @property
    def compressed(self) -> bool:
        """Whether `stream` decompresses."""
        return self._compression() is not None

    def _compression(self) -> str | None:
        with self.open() as opened:
            first = opened.read(4)
        return next((name for magic, name in _COMPRESSIONS.items() if first.startswith(magic)), None)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn whatever readers raise on damaged bytes into a DataError that names the file."""
    try:
        yield
    except NarrowsError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"no such file: {name}") from error
    except PermissionError as error:
        raise DataError(f"{name} may not be read", "permission to read it") from error
    except _DAMAGE as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(f"{name} cannot be read: {reason}", hint="checking that the file is whole") from error


def find(path: str | Path) -> list[File]:
    """The files that a path, glob, folder or URL stands for, in name order.

    Raises:
        DataError: there is none, or a folder holds files of several suffixes.
    """
    text = os.fspath(path)
    if "://" in text:
        return _find_remote(text)
    local = os.path.expanduser(text)
    if glob.has_magic(local) and not os.path.exists(local):
        return _of_glob(local)
    return _find_local(local, local)


def _find_local(path: str, root: str) -> list[File]:
    """The files at a path; folders named `key=value` count where they lie below `root`."""
    if os.path.isdir(path):
        return _of_folder(path, fs.LocalFileSystem(), root)
    if not os.path.exists(path):
        raise DataError(f"no such file: {path}", FILES, "checking the path")
    if not os.path.isfile(path):
        raise DataError(f"{path} is a device or pipe", "a regular file, which can be read more than once")
    return [File(path, path, keys=_keys_between(root, path))]


def _of_glob(pattern: str) -> list[File]:
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts)
    root = os.path.join(*fixed, "")
    files = [file for match in sorted(glob.glob(pattern, recursive=True)) for file in _find_local(match, root)]
    if not files:
        raise DataError(f"no file matches {pattern}", FILES)
    return list({file.path: file for file in files}.values())  # `**` matches a folder and what is in it


def _find_remote(url: str) -> list[File]:
    with reading(url):
        try:
            system, path = fs.FileSystem.from_uri(url)
        except (pa.ArrowException, ValueError) as error:
            raise DataError(f"URL {url}: {error}", "file://, s3://, gs:// or hdfs://", "downloading it") from error
        info = system.get_file_info(path)
        if info.type == fs.FileType.Directory:
            return _of_folder(path, system, path)
        if info.type == fs.FileType.NotFound:
            raise DataError(f"no such file: {url}")
        return [File(url, path, system)]


def _of_folder(folder: str, system: fs.FileSystem, root: str) -> list[File]:
    with reading(folder):
        infos = system.get_file_info(fs.FileSelector(folder, recursive=True))
    paths = sorted(info.path for info in infos if info.is_file and not _hidden(info.path, folder))
    if not paths:
        raise DataError(f"folder {folder} has no files", FILES)
    suffixes = Counter(_suffix(path) for path in paths)
    if len(suffixes) > 1:
        counts = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(suffixes.items()))
        raise DataError(f"folder {folder} has files of several kinds: {counts}", "one kind", "a glob, as in '*.csv'")
    return [File(path, path, system, _keys_between(root, path)) for path in paths]


def _hidden(path: str, folder: str) -> bool:
    return any(part[0] in "._" for part in PurePosixPath(os.path.relpath(path, folder)).parts)


def _suffix(path: str) -> str:
    suffixes = PurePosixPath(path).suffixes
    return "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def _keys_between(root: str, path: str) -> dict[str, str | None]:
    """`{"year": "2024"}` of the folder `year=2024` between a root and a file, URL escapes undone."""
    folders = PurePosixPath(os.path.relpath(path, root or ".")).parts[:-1]
    pairs = [part.split("=", 1) for part in folders if "=" in part]
    return {key: None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value) for key, value in pairs}


def format_of(file: File) -> Format:
    """What a file is, by its first bytes.

    Raises:
        DataError: it is empty, of a known format that is not read, or no text.
    """
    with reading(file.name):
        with file.open() as raw:
            first = raw.read(8)
        with file.stream() as stream:
            head = stream.read(4096)
    if not head:
        raise DataError(f"{file.name} is empty", "rows")
    if first.startswith(b"PAR1"):
        return "parquet"
    if first.startswith(b"\x93NUMPY"):
        return "npy"
    if first.startswith(b"PK\x03\x04"):
        return "npz"
    if head[:2] == b"\0\0" and len(head) >= 4 and head[2] in range(8, 15) and head[3] > 0:
        return "idx"
    _check_text(file, head)
    return "text"


def _check_text(file: File, head: bytes) -> None:
    suffixes = PurePosixPath(file.path).suffixes
    if any(suffix in (".json", ".jsonl", ".feather", ".arrow", ".xlsx") for suffix in suffixes):
        raise DataError(f"{file.name}: {suffixes[0]} files are not read", FILES, "converting it to .parquet or .csv")
    claims = next((suffix for suffix in suffixes if suffix in (".parquet", ".npy", ".npz")), None)
    if claims or (b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff"))):
        raise DataError(f"{file.name} does not begin like {claims or 'any'} file that is read", FILES)
