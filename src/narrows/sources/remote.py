"""URLs: files of whatever pyarrow's file systems reach (file://, s3://, gs://, hdfs://, abfs://), globs among them.

Credentials come from where those systems look for them. What cannot be reached ends in words within a minute; a
password inside a URL is never repeated.
"""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

import pyarrow as pa
from pyarrow import fs

from narrows.errors import DataError
from narrows.sources.paths import File, of_folder, of_paths, reading
from narrows.sources.source import FILES

_PATIENCE = "retry_limit_seconds"  # of Google's client, which otherwise tries for a quarter of an hour
_SECRETS = re.compile(r"(?<=://)[^/@]*@")
_REASON = 200  # characters


def find_remote(url: str) -> list[File]:
    """The files that a URL stands for, in name order.

    Raises:
        DataError: there is none, the URL is not understood, or what it names cannot be reached.
    """
    shown = _SECRETS.sub("", url)
    system, path = _system(url, shown)
    with _reaching(shown):
        info = system.get_file_info(path)
        if info.type == fs.FileType.NotFound and glob.has_magic(path):
            return _of_glob(path, system, shown)
    if info.type == fs.FileType.Directory:
        return of_folder(path, system, path)
    if info.type == fs.FileType.NotFound:
        raise DataError(f"no such file: {shown}")
    return [File(shown, path, system)]


def _system(url: str, shown: str) -> tuple[fs.FileSystem, str]:
    if url.startswith(("gs://", "gcs://")) and _PATIENCE not in url:
        url += f"{'&' if '?' in url else '?'}{_PATIENCE}=30"
    with _reaching(shown):
        try:
            found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(url)
        except (pa.ArrowException, ValueError) as error:
            reason = _SECRETS.sub("", str(error))
            raise DataError(f"URL {shown}: {reason}", "file://, s3://, gs:// or hdfs://", "downloading it") from error
    return found


@contextmanager
def _reaching(shown: str) -> Iterator[None]:
    """Say which URL cannot be reached, and the first of the many words that such errors come with."""
    try:
        with reading(shown):
            yield
    except DataError as error:
        if not isinstance(error.__cause__, OSError) or isinstance(error.__cause__, FileNotFoundError | PermissionError):
            raise
        reason = str(error.__cause__).strip().partition("\n")[0]
        reason = reason if len(reason) <= _REASON else f"{reason[:_REASON]}..."
        hint = "checking the address, the network and the credentials"
        raise DataError(f"{shown} cannot be reached: {reason}", hint=hint) from error


def _of_glob(pattern: str, system: fs.FileSystem, shown: str) -> list[File]:
    parts = PurePosixPath(pattern).parts
    root = str(PurePosixPath(*itertools.takewhile(lambda part: not glob.has_magic(part), parts)))
    infos = system.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    files = [file for info in infos if _matches(info.path, pattern) for file in _of_match(info, system, root)]
    if not files:
        raise DataError(f"no file matches {shown}", FILES)
    return sorted({file.path: file for file in files}.values(), key=lambda file: file.path)


def _of_match(info: fs.FileInfo, system: fs.FileSystem, root: str) -> list[File]:
    if info.type == fs.FileType.Directory:
        return of_folder(info.path, system, root)
    return of_paths([info.path], system, root)


def _matches(path: str, pattern: str) -> bool:
    """Whether a path is one of a glob; `*` stays within a folder's name, `**` may span several."""
    if "**" in pattern:
        return fnmatchcase(path, pattern.replace("**/", "*"))
    pairs = list(itertools.zip_longest(PurePosixPath(path).parts, PurePosixPath(pattern).parts, fillvalue=""))
    return all(fnmatchcase(part, wanted) for part, wanted in pairs)
