"""Rows back in the container they came in.

A model answers with Arrow tables. Each class here remembers, in a way that can be pickled, how the rows of `fit` were
held, and makes such a container of a table with the same columns. What cannot come back: the index of rows that were
decoded from codes, the device of a tensor, and bytes where an array of objects held them instead of text.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from narrows.sources.source import Source


class Container(Protocol):
    """What makes a container of a table's rows."""

    def __call__(self, table: pa.Table, like: Any = None) -> Any:
        """The rows of `table`; `like` is the container of the same rows before, where there is one."""
        ...


def container_of(given: Any, rows: Any) -> Container:
    """The container of rows as they were given; `rows` are the same after scikit-learn's checks."""
    if is_pandas(given):
        return InPandas(given.columns.copy(), tuple(given.dtypes))
    polars, torch = sys.modules.get("polars"), sys.modules.get("torch")
    if polars is not None and isinstance(given, polars.DataFrame):
        return InPolars(dict(given.schema))
    if isinstance(given, Source) or hasattr(given, "__fspath__") or isinstance(given, str):
        return InArrow()
    if hasattr(given, "__arrow_c_stream__"):
        return InArrow()
    if torch is not None and isinstance(given, torch.Tensor):
        return InTensor(given.dtype)
    if hasattr(given, "tocsr"):
        return InSparse(given.shape[1], given.dtype, given.format, not hasattr(given, "getrow"))
    return InArray(given.dtype if isinstance(given, np.ndarray) else np.asarray(rows).dtype)


def as_fitted(rows: Any, container: Container) -> Any:
    """An array or sparse matrix as the one of the two that the rows of `fit` were."""
    bags = isinstance(container, InSparse)
    if hasattr(rows, "tocsr"):
        return rows if bags else rows.toarray()
    from scipy import sparse

    return sparse.csr_array(rows) if bags else rows


def framed(table: pa.Table, like: Any) -> Any:
    """A table of answers to rows: as a data frame with their index for one of pandas, of polars for one of polars."""
    polars = sys.modules.get("polars")
    if polars is not None and isinstance(like, polars.DataFrame):
        return polars.from_arrow(table)
    if not is_pandas(like):
        return table
    frame = table.to_pandas()
    frame.index = like.index
    return frame


def is_pandas(rows: Any) -> bool:
    """Whether rows are a data frame of pandas, which is not imported to find out."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(rows, pandas.DataFrame)


@dataclass(frozen=True)
class InArrow:
    """The table itself."""

    def __call__(self, table: pa.Table, like: Any = None) -> pa.Table:
        """See `Container`."""
        return table


@dataclass(frozen=True)
class InPolars:
    """A data frame of polars.

    Args:
        types: column -> its type; pyarrow knows neither `Enum` nor all the integers.
    """

    types: dict[str, Any]

    def __call__(self, table: pa.Table, like: Any = None) -> Any:
        """See `Container`."""
        import polars

        frame: Any = polars.from_arrow(table)
        # a text that was read as a bag comes back as its words and their counts
        bags = {field.name for field in table.schema if pa.types.is_map(field.type) and not self._listed(field.name)}
        return frame.cast({name: kind for name, kind in self.types.items() if name not in bags})

    def _listed(self, name: str) -> bool:
        return bool(self.types[name].is_nested())


@dataclass(frozen=True)
class InPandas:
    """A data frame of pandas.

    Args:
        columns: the index of the columns, whose labels need not be texts.
        types: of each column.
    """

    columns: Any
    types: tuple[Any, ...]

    def __call__(self, table: pa.Table, like: Any = None) -> Any:
        """See `Container`; with the index of `like`."""
        import pandas

        pairs = zip(table.columns, self.types, strict=True)
        frame = pandas.DataFrame({place: _series(column, kind) for place, (column, kind) in enumerate(pairs)})
        frame.columns = self.columns
        if is_pandas(like):
            frame.index = like.index
        return frame


def _series(column: pa.ChunkedArray, kind: Any) -> Any:
    """A column of a data frame, of the type it had."""
    import pandas

    if kind == np.dtype(object) or pa.types.is_map(column.type):
        return pandas.Series(_objects(column), dtype=object)
    if isinstance(kind, pandas.CategoricalDtype):  # a cast takes categories in another order for the same ones
        return column.to_pandas().cat.set_categories(kind.categories, ordered=kind.ordered)
    if hasattr(kind, "__from_arrow__"):  # the extension types, which know more than a cast does
        return pandas.Series(kind.__from_arrow__(column), dtype=kind)
    return column.to_pandas().astype(kind)


def _objects(column: pa.ChunkedArray) -> list[Any]:
    """Values as Python has them; a bag as a dictionary, whether it came as one or as a text."""
    values: list[Any] = column.to_pylist()
    if not pa.types.is_map(column.type):
        return values
    return [None if pairs is None else dict(pairs) for pairs in values]


@dataclass(frozen=True)
class InArray:
    """An array of numpy.

    Args:
        dtype: of its elements.
    """

    dtype: np.dtype[Any]

    def __call__(self, table: pa.Table, like: Any = None) -> np.ndarray:
        """See `Container`."""
        if table.num_columns == 1 and isinstance(table.schema.types[0], pa.FixedShapeTensorType):
            cells: np.ndarray = table.column(0).combine_chunks().to_numpy_ndarray()
            return cells.astype(self.dtype, copy=False)
        if self.dtype.kind in "mM":
            return np.column_stack([column.to_numpy() for column in table.columns]).astype(self.dtype)
        objects = np.empty(table.shape, dtype=object)
        for place, column in enumerate(table.columns):
            objects[:, place] = _objects(column)
        if any(pa.types.is_map(kind) for kind in table.schema.types):
            return objects
        if self.dtype.kind == "S":
            objects = np.char.encode(objects.astype(np.str_), "utf-8")
        return objects.astype(self.dtype, copy=False)


@dataclass(frozen=True)
class InSparse:
    """A sparse matrix or array of scipy.

    Args:
        items: its columns.
        dtype: of its values.
        form: how it is stored: `csr`, `csc`, ...
        array: whether it is an array, not a matrix.
    """

    items: int
    dtype: np.dtype[Any]
    form: str
    array: bool

    def __call__(self, table: pa.Table, like: Any = None) -> Any:
        """See `Container`."""
        from scipy import sparse

        bags = pa.concat_arrays(table.column(0).chunks or [pa.array([], table.schema.types[0])])
        values = bags.items.to_numpy(zero_copy_only=False).astype(self.dtype)
        make = sparse.csr_array if self.array else sparse.csr_matrix
        rows = make((values, np.asarray(bags.keys), np.asarray(bags.offsets)), (len(bags), self.items), copy=True)
        rows.eliminate_zeros()  # fractions, where values are whole
        return rows.asformat(self.form)


@dataclass(frozen=True)
class InTensor:
    """A tensor of torch, in the processor's memory.

    Args:
        dtype: of its elements.
    """

    dtype: Any

    def __call__(self, table: pa.Table, like: Any = None) -> Any:
        """See `Container`."""
        import torch

        cells: np.ndarray = table.column(0).combine_chunks().to_numpy_ndarray()
        return torch.from_numpy(cells.copy()).to(self.dtype)
