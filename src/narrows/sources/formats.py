"""What a file is: images and sounds by their suffix, everything else by its first bytes.

A folder of a hundred thousand images is told apart without opening one, and an image that is damaged from its first
byte on is still an image, so that it can be left out by name. Of other files the suffix is only asked what it claims.
Knows the beginnings of files, nothing of the rest.
"""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import Literal

from narrows.errors import DataError
from narrows.sources.paths import IMAGES, SOUNDS, File, reading
from narrows.sources.source import FILES

Format = Literal["parquet", "npy", "npz", "idx", "ipc", "jsonl", "image", "sound", "text"]

_JSON = {".json", ".jsonl", ".ndjson"}
_HEAD = 4096
_BEGINNINGS: tuple[tuple[bytes, Format], ...] = (
    (b"PAR1", "parquet"),
    (b"\x93NUMPY", "npy"),
    (b"PK\x03\x04", "npz"),
    (b"ARROW1\0\0", "ipc"),
    (b"\xff\xff\xff\xff", "ipc"),  # of a stream; no text begins so
    (b"\x89PNG\r\n\x1a\n", "image"),
    (b"\xff\xd8\xff", "image"),
    (b"GIF87a", "image"),
    (b"GIF89a", "image"),
    (b"II*\0", "image"),
    (b"MM\0*", "image"),
    (b"fLaC\0", "sound"),
)
_UNREAD = {".feather": "Feather of version 1 is not read", ".xlsx": ".xlsx files are not read"}


def format_of(file: File) -> Format:
    """What a file is.

    Raises:
        DataError: it is empty, of a known format that is not read, or no text.
    """
    suffix = os.path.splitext(file.path)[1].lower()
    if suffix in IMAGES or suffix in SOUNDS:
        return "image" if suffix in IMAGES else "sound"
    with reading(file.name), file.stream() as stream:
        head = stream.read(_HEAD)
    if not head:
        raise DataError(f"{file.name} is empty", "rows")
    if names_json(file):
        return "jsonl"
    binary = _binary(head)
    if binary is not None:
        return binary
    _check_text(file, head)
    return "jsonl" if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{" else "text"


def names_json(file: File) -> bool:
    """Whether the file is called one of JSON."""
    suffixes = [suffix for suffix in _suffixes(file) if suffix not in (".gz", ".zst")]
    return suffixes[-1:] != [] and suffixes[-1] in _JSON


def _suffixes(file: File) -> list[str]:
    return [suffix.lower() for suffix in PurePosixPath(file.path).suffixes]


def _binary(head: bytes) -> Format | None:
    """The format of a file that begins like this, where that is no text."""
    for beginning, format in _BEGINNINGS:
        if head.startswith(beginning):
            return format
    if head.startswith(b"RIFF") and head[8:12] in (b"WAVE", b"WEBP"):
        return "sound" if head[8:12] == b"WAVE" else "image"
    if head.startswith(b"BM") and head[6:10] == bytes(4):  # a table may well begin with BMI
        return "image"
    if head[:2] == b"\0\0" and len(head) >= 4 and head[2] in range(8, 15) and head[3] > 0:
        return "idx"
    return None


def _check_text(file: File, head: bytes) -> None:
    suffixes = _suffixes(file)
    unread = next((_UNREAD[suffix] for suffix in suffixes if suffix in _UNREAD), None)
    if unread:
        raise DataError(f"{file.name}: {unread}", FILES, "converting it to .parquet or .csv")
    claims = next((suffix for suffix in suffixes if suffix in (".parquet", ".npy", ".npz", ".arrow")), None)
    if claims or (b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff"))):
        raise DataError(f"{file.name} does not begin like {claims or 'any'} file that is read", FILES)
