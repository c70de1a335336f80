"""Files and folders that appear whole or not at all: written under another name in the same folder, then renamed.

Costs one flush of the disk a file, and room for the old and the new file at once; of a folder the files are left to the
system to flush, as a thousand flushes would take longer than the work. Knows nothing of what is written.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from narrows.errors import NarrowsError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REASONS = {
    errno.ENOENT: ("no such folder", "create the folder first"),
    errno.ENOTDIR: ("part of the path is a file, not a folder", "another path"),
    errno.EACCES: ("permission denied", "a folder you may write to"),
    errno.EPERM: ("permission denied", "a folder you may write to"),
    errno.EROFS: ("the file system is read-only", "a folder you may write to"),
    errno.EISDIR: ("it is a folder", "the name of a file in it"),
    errno.ENAMETOOLONG: ("the name is too long", "a shorter name"),
}


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Give the body of a `with` a temporary file to write, and put it in the place of `path` once the body ends well.

    The temporary file exists, is empty, stands in the same folder and keeps the suffix; a link is followed, so what it
    points to is replaced. After any exception, Ctrl-C too, it is removed and what stood at `path` is untouched.

    Raises:
        NarrowsError: the folder is missing or may not be written to, `path` is no regular file, or space ran out.
    """
    target = Path(os.path.realpath(path))
    temporary = _create_beside(target, path)
    try:
        with _saying_full(path):
            yield temporary
            _put_in_place(temporary, target)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """As `atomic`, for a folder: the body gets an empty one to fill.

    Raises:
        NarrowsError: as `atomic`, and where a file or a folder that is not empty stands at `path`.
    """
    target = Path(os.path.realpath(path))
    refuse_filled(path)
    temporary = target.with_name(f".{target.name[:80]}.{secrets.token_hex(6)}")
    with _saying_why(path):
        temporary.mkdir()
    try:
        with _saying_full(path):
            yield temporary
            if target.exists():
                target.rmdir()  # not every system renames over an empty folder
            os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_filled(path: str | Path) -> None:
    """Refuse a path where a file stands, or a folder that holds something.

    Raises:
        NarrowsError: saying which.
    """
    target = Path(os.path.realpath(path))
    with _saying_why(path):
        if target.exists() and not target.is_dir():
            raise NarrowsError(f"cannot write the folder {path}: it is a file", hint="another name")
        if target.is_dir() and any(target.iterdir()):
            raise NarrowsError(f"cannot write the folder {path}: it is not empty", "a new or empty folder")


def refuse_unwritable(path: str | Path) -> None:
    """Find out now whether `atomic` could write a file, rather than after the work that it is to hold.

    Raises:
        NarrowsError: as `atomic`; an empty folder whose name has no suffix will do, as `atomic_folder` takes it.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir() and not target.suffix and target != target.parent:
        refuse_filled(path)
        target = target / "file"
    _create_beside(target, path).unlink()


@contextmanager
def _saying_full(path: str | Path) -> Iterator[None]:
    """Say in words that there is no space left."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _no_space(path) from error
        raise
    except Exception as error:
        # Libraries that write files from compiled code report a full disk as an error of their own.
        if any(os.strerror(number) in str(error) for number in _FULL):
            raise _no_space(path) from error
        raise


@contextmanager
def _saying_why(path: str | Path) -> Iterator[None]:
    """Say in words why the system refuses to make something."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _no_space(path) from error
        reason, hint = _REASONS.get(error.errno or 0, (error.strerror or str(error), "another path"))
        raise NarrowsError(f"cannot write {path}: {reason}", hint=hint) from error


def _create_beside(target: Path, path: str | Path) -> Path:
    temporary = target.with_name(f".{target.stem[:80]}.{secrets.token_hex(6)}{target.suffix[-20:]}")
    with _saying_why(path):
        if target.exists() and not target.is_file():
            reason = "it is a folder" if target.is_dir() else "it is a device or pipe"
            raise NarrowsError(f"cannot write {path}: {reason}", "a file that can be replaced", "another name")
        # Opened by mode, not by tempfile: the user's umask decides who may read the result.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        if target.exists():
            shutil.copymode(target, temporary)
    return temporary


def _put_in_place(temporary: Path, target: Path) -> None:
    _flush(temporary)
    os.replace(temporary, target)
    if hasattr(os, "O_DIRECTORY"):  # the rename itself must outlive a power cut; Windows cannot open folders
        _flush(target.parent)


def _flush(path: Path) -> None:
    # Windows flushes only what is open for writing, and a folder can be opened only for reading.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _no_space(path: str | Path) -> NarrowsError:
    return NarrowsError(f"no space left writing {path}", hint="freeing space, or another folder")
