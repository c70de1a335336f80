"""Files inside a .zip, read one by one without unpacking it.

A member is unpacked into memory whole each time it is opened, which suits many small files such as images and sounds.
Knows only what its table of contents says; encrypted archives and rare compressions are refused.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from narrows.errors import DataError
from narrows.sources.paths import File, reading

MEMBER_BYTES = 1 << 30  # a few KB of zip can claim any size: one that claims more is not unpacked


@dataclass(frozen=True)
class Member(File):
    """A file in a .zip; see `File`.

    Args:
        archive: the .zip.
        entry: its line in the table of contents.
    """

    archive: File = field(default=File("", ""))
    entry: zipfile.ZipInfo = field(default_factory=zipfile.ZipInfo)

    @property
    def local(self) -> bool:
        """No: the operating system does not see it."""
        return False

    def open(self) -> Any:
        """The unpacked bytes, seekable."""
        entry = self.entry
        with reading(self.name), self.archive.open() as raw:
            # Not through ZipFile, which would read the whole table of contents for each member.
            raw.seek(entry.header_offset)
            name, extra = struct.unpack("<HH", raw.read(30)[26:].ljust(4, b"\0"))
            raw.seek(entry.header_offset + 30 + name + extra)
            data = raw.read(entry.compress_size)
            if entry.compress_type == zipfile.ZIP_DEFLATED:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, max(1, entry.file_size))
        if len(data) != entry.file_size or zlib.crc32(data) != entry.CRC:
            raise DataError(f"{self.name} is damaged: its checksum differs", hint="getting the archive again")
        return pa.BufferReader(data)


def members(archive: File) -> list[Member]:
    """The files in a .zip, in name order, folders left out.

    Raises:
        DataError: it is damaged, encrypted, compressed in a rare way, or a file in it claims more than 1 GB.
    """
    with reading(archive.name), archive.open() as raw, zipfile.ZipFile(raw) as opened:
        entries = sorted((entry for entry in opened.infolist() if not entry.is_dir()), key=lambda e: e.filename)
    for entry in entries:
        got = f"{archive.name}/{entry.filename}"
        if entry.flag_bits & 1:
            raise DataError(f"{got} is encrypted", "a plain .zip")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{got} is compressed in a way that is not read", "deflate", "unpacking the archive")
        if entry.file_size > MEMBER_BYTES:
            raise DataError(f"{got} claims {entry.file_size:,} bytes", "1 GB or less", "unpacking the archive")
    names = [f"{archive.path}/{entry.filename}" for entry in entries]
    return [Member(name, name, archive=archive, entry=entry) for name, entry in zip(names, entries, strict=True)]
