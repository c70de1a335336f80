"""Where files are: a path, glob, folder, .zip or URL becomes a list of files.

Files of a folder come in name order, hidden ones (`.` or `_` first) left out. Reads through pyarrow's file systems,
so what those reach (local disks, S3, GCS, HDFS) is reached here too. Knows nothing of what is in the files; which kind
they are says `formats.py`.
"""

from __future__ import annotations

import glob
import itertools
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from zipfile import BadZipFile

import pyarrow as pa
from pyarrow import fs

from narrows.errors import DataError, NarrowsError
from narrows.sources.source import FILES

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp"})
SOUNDS = frozenset({".wav", ".flac"})
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
        opened = self.open()
        compression = _compression(opened)
        return opened if compression is None else pa.CompressedInputStream(opened, compression)

    @property
    def compressed(self) -> bool:
        """Whether `stream` decompresses."""
        with self.open() as opened:
            return _compression(opened) is not None


def _compression(opened: Any) -> str | None:
    """What the bytes from here on are compressed with, if at all."""
    first = opened.read(4)
    opened.seek(0)
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
    """The files that a path, glob, folder, .zip or URL stands for, in name order.

    Raises:
        DataError: there is none, or a folder holds files of several kinds.
    """
    text = os.fspath(path)
    local = os.path.expanduser(text)
    if "://" in text:
        from narrows.sources.remote import find_remote  # which imports what a file is from here

        files = find_remote(text)
    elif glob.has_magic(local) and not os.path.exists(local):
        files = _of_glob(local)
    else:
        files = _find_local(local, local)
    return [inner for file in files for inner in (_in_archive(file) if _suffix(file.path) == ".zip" else [file])]


def _in_archive(file: File) -> list[File]:
    from narrows.sources.archives import members  # likewise

    files: list[File] = [member for member in members(file) if not _hidden(member.path, file.path)]
    _check_kinds([member.path for member in files], file.name)
    return files


def _find_local(path: str, root: str) -> list[File]:
    """The files at a path; folders named `key=value` count where they lie below `root`."""
    if os.path.isdir(path):
        return of_folder(path, fs.LocalFileSystem(), root)
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


def of_folder(folder: str, system: fs.FileSystem, root: str) -> list[File]:
    """The files in a folder and those below it, hidden ones left out; `key=value` folders count below `root`.

    Raises:
        DataError: there is none, or they are of several kinds.
    """
    with reading(folder):
        infos = system.get_file_info(fs.FileSelector(folder, recursive=True))
    paths = sorted(info.path for info in infos if info.is_file and not _hidden(info.path, folder))
    _check_kinds(paths, f"folder {folder}")
    return of_paths(paths, system, root)


def of_paths(paths: Iterable[str], system: fs.FileSystem, root: str) -> list[File]:
    """Files at these paths, with the values of the `key=value` folders below `root`."""
    return [File(path, path, system, _keys_between(root, path)) for path in paths]


def _check_kinds(paths: list[str], where: str) -> None:
    """Refuse no files, and files of several kinds; all images are of one kind, and so are all sounds."""
    if not paths:
        raise DataError(f"{where} has no files", FILES)
    suffixes = Counter(_suffix(path) for path in paths)
    if len({_kind(suffix) for suffix in suffixes}) > 1:
        counts = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(suffixes.items()))
        raise DataError(f"{where} has files of several kinds: {counts}", "one kind", "a glob, as in '*.csv'")


def _kind(suffix: str) -> str:
    return "image" if suffix in IMAGES else "sound" if suffix in SOUNDS else suffix


def _hidden(path: str, folder: str) -> bool:
    return any(part[0] in "._" for part in _below(path, folder).split("/") if part)


def _below(path: str, folder: str) -> str:
    """A path as seen from a folder above it."""
    if folder and path.startswith(folder):  # a hundred thousand paths are compared faster than they are taken apart
        return path[len(folder) :].lstrip("/")
    return os.path.relpath(path, folder or ".").replace(os.sep, "/")


def _suffix(path: str) -> str:
    stem, suffix = os.path.splitext(path)
    return (os.path.splitext(stem)[1] + suffix if suffix in (".gz", ".zst") else suffix).lower()


def _keys_between(root: str, path: str) -> dict[str, str | None]:
    """`{"year": "2024"}` of the folder `year=2024` between a root and a file, URL escapes undone."""
    folders = _below(path, root).split("/")[:-1]
    pairs = [part.split("=", 1) for part in folders if "=" in part]
    return {key: None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value) for key, value in pairs}
