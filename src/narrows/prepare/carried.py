"""Statistics as bytes and back: how several processes, each with some of the rows, come to know what all rows are.

Nothing but numbers, texts, NumPy arrays and Arrow data travels; types and settings are those of the statistics that
are filled, which the reader makes from the same schema. So no bytes can make it run anything.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import load, save

from narrows import world
from narrows.prepare.statistics import Statistics

_FACTS = "#"  # the array that holds the JSON of all that is no array


def merged(statistics: Statistics, schema: pa.Schema) -> Statistics:
    """The statistics of all processes' rows, the same in each; those given where there is one process."""
    if world.size() == 1:
        return statistics
    first, *others = (unpacked(message, schema) for message in world.gathered(packed(statistics)))
    for other in others:
        first.merge(other)
    return first


def packed(statistics: Statistics) -> bytes:
    """All that was learnt from rows."""
    arrays: dict[str, np.ndarray] = {}
    tree = _tree(statistics, arrays)
    arrays[_FACTS] = np.frombuffer(json.dumps(tree).encode(), np.uint8)
    return save(arrays)


def unpacked(message: bytes, schema: pa.Schema) -> Statistics:
    """The statistics that `packed` was given, of rows of this Arrow schema."""
    arrays = load(message)
    statistics = Statistics(schema)
    _fill(statistics, json.loads(arrays[_FACTS].tobytes()), arrays)
    return statistics


def _tree(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Plain JSON, with [kind, ...] for whatever is not plain; None for what the reader has already."""
    if value is None or isinstance(value, bool | int | float | str):
        return ["plain", value]
    if isinstance(value, np.ndarray):
        return ["array", _kept(value, arrays)]
    if isinstance(value, pa.Table):
        return ["table", _kept(_written(value), arrays)]
    if isinstance(value, pa.Array):
        return ["column", _kept(_written(pa.table({"x": value})), arrays)]
    if isinstance(value, list | tuple):
        return [type(value).__name__, [_tree(each, arrays) for each in value]]
    if isinstance(value, dict):
        return ["dict", {key: _tree(each, arrays) for key, each in value.items()}]
    if type(value).__module__.startswith("narrows.prepare") and not _frozen(value):
        return ["object", {name: _tree(each, arrays) for name, each in vars(value).items()}]
    return None


def _fill(there: Any, tree: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The value of a tree, of what stands in its place at the reader's."""
    if tree is None:
        return there
    kind, told = tree
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(_fill(None, each, arrays) for each in told)
    if kind == "dict":
        return {key: _fill((there or {}).get(key), each, arrays) for key, each in told.items()}
    if kind == "object":
        for name, each in told.items():
            setattr(there, name, _fill(getattr(there, name), each, arrays))
        return there
    if kind == "plain":
        return told
    array = arrays[told]
    if kind == "array":
        return array
    table = pa.ipc.open_stream(pa.py_buffer(array.tobytes())).read_all()
    return table if kind == "table" else table.column(0).combine_chunks()


def _kept(array: np.ndarray, arrays: dict[str, np.ndarray]) -> str:
    name = str(len(arrays))
    arrays[name] = np.ascontiguousarray(array)
    return name


def _written(table: pa.Table) -> np.ndarray:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return np.frombuffer(sink.getvalue(), np.uint8)


def _frozen(value: Any) -> bool:
    settings = getattr(value, "__dataclass_params__", None)
    return bool(settings and settings.frozen)
