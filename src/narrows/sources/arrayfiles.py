"""Files that hold one array: .npy, .npz and IDX (the format of MNIST), and the `digits` that scikit-learn brings.

An .npy or plain IDX file is memory-mapped, never loaded whole; a compressed one (.npz, .gz) is unpacked into memory.
What a header claims is checked against the bytes that are there before anything is made of it; nothing is unpickled.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.errors import DataError
from narrows.sources.arrays import ArraySource, open_array
from narrows.sources.paths import File, reading
from narrows.sources.reading import Reading
from narrows.sources.source import Source

_NPZ_NAMES = ("X", "x", "images", "data")
_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def open_digits() -> Source:
    """scikit-learn's 1,797 digits: one column `image` (8, 8) of uint8 in 0..16 (Alpaydin and Kaynak, 1998)."""
    from sklearn.datasets import load_digits

    return ArraySource(load_digits().images.astype(np.uint8), "digits", "image")


def open_array_file(file: File, format: str, asked: Reading) -> Source:
    """A source of the rows of an array file.

    Images of an IDX file make the column `image`, its labels the column `label`; other arrays the column `x`.

    Args:
        file: the file.
        format: `npy`, `npz` or `idx`.
        asked: says which array of an .npz to read: by default its only one, or the one called X, x, images or data.

    Raises:
        DataError: the file is damaged or shorter than it claims, holds Python objects, or several arrays of which none
            is the one wanted.
    """
    with reading(file.name):
        if format == "npz":
            return _open_npz(file, asked)
        raw = _bytes(file)
        if format == "npy":
            return open_array(_parse_npy(raw, file.name), file.name, asked)
        array = _parse_idx(raw, file.name)
    return ArraySource(array, file.name, {1: "label", 2: "x"}.get(array.ndim, "image"))


def _bytes(file: File) -> NDArray[np.uint8]:
    """All bytes of a file: mapped where it lies on a disk as it is, else read."""
    if file.local and not file.compressed:
        return np.memmap(file.path, np.uint8, mode="r")
    with file.stream() as stream:
        return np.frombuffer(stream.read(), np.uint8)


def _open_npz(file: File, asked: Reading) -> Source:
    """The array of an .npz that is meant, or the sparse matrix that scipy.sparse.save_npz wrote into it."""
    with file.open() as opened, zipfile.ZipFile(opened) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if asked.array is None and {"format", "shape", "data"} <= set(names):
            return _open_sparse(file, archive)
        usual = names if len(names) == 1 else [name for name in _NPZ_NAMES if name in names]
        wanted = usual if asked.array is None else [name for name in names if name == asked.array]
        if not wanted:
            found = ", ".join(names[:10]) + (" and more" if len(names) > 10 else "") or "nothing"
            want = f"the array {asked.array!r}" if asked.array else f"one array, or one called {', '.join(_NPZ_NAMES)}"
            raise DataError(f"{file.name} holds {found}", want, "saying which: array= (--array)")
        return open_array(_member(file, archive, wanted[0]), f"{file.name}:{wanted[0]}", asked)


def _open_sparse(file: File, archive: zipfile.ZipFile) -> Source:
    from narrows.sources.sparse import open_csr

    form = _member(file, archive, "format")
    if form.shape != () or str(form.astype(str)) != "csr":
        hint = "scipy.sparse.save_npz(path, matrix.tocsr())"
        raise DataError(f"{file.name} holds a sparse matrix of format {form.astype(str)}", "csr", hint)
    indptr, indices, data, shape = (_member(file, archive, name) for name in ("indptr", "indices", "data", "shape"))
    if shape.shape != (2,) or shape.dtype.kind not in "iu":
        raise DataError(f"{file.name} says the shape {shape.tolist()}", "rows and items (n, I)")
    return open_csr(indptr, indices, data, (int(shape[0]), int(shape[1])), file.name)


def _member(file: File, archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """One array of an .npz."""
    member = next((entry for entry in archive.infolist() if entry.filename.removesuffix(".npy") == name), None)
    if member is None:
        raise DataError(f"{file.name} holds no array {name!r}", hint="checking that the file is whole")
    if member.flag_bits & 1:
        raise DataError(f"{file.name} is encrypted", "a plain .npz")
    return _parse_npy(np.frombuffer(archive.read(member), np.uint8), f"{file.name}:{name}")


def _parse_npy(raw: NDArray[np.uint8], name: str) -> NDArray[Any]:
    """A view of the array that the bytes of an .npy file hold."""
    try:
        head = io.BytesIO(raw[: 1 << 17].tobytes())
        shape, fortran, dtype = _HEADERS[np.lib.format.read_magic(head)](head)
        if dtype.hasobject:
            raise DataError(f"{name} holds Python objects, which could run code", "numbers", "saving it as .parquet")
        return np.ndarray(shape, dtype, buffer=raw, offset=head.tell(), order="F" if fortran else "C")
    except DataError:
        raise
    except Exception as error:  # a damaged header is Python source that can fail in any way
        reason = str(error).partition("\n")[0]
        raise DataError(f"{name} is no whole .npy array: {reason}", hint="checking that the file is whole") from error


def _parse_idx(raw: NDArray[np.uint8], name: str) -> NDArray[Any]:
    """A view of the array that the bytes of an IDX file hold; numbers are stored high byte first."""
    dimensions = int(raw[3])
    start = 4 + 4 * dimensions
    if raw[2] not in _IDX_TYPES or len(raw) < start:
        raise DataError(f"{name} is no whole IDX file: its header is damaged", hint="checking that the file is whole")
    shape = struct.unpack(f">{dimensions}I", raw[4:start].tobytes())
    dtype = np.dtype(_IDX_TYPES[int(raw[2])])
    claimed = math.prod(shape) * dtype.itemsize
    if claimed != len(raw) - start:
        raise DataError(f"{name} has {len(raw) - start} bytes of values", f"{claimed} for the {shape} its header says")
    return raw[start:].view(dtype).reshape(shape)
