"""Rows as points, so that distances between them mean something: numbers, and categories by how rare a level is.

A number is its prepared value. Each known level of a category is a flag, weighed as a number column would be that is 1
in so many rows: two rows that differ by a rare level are far from each other, by a frequent one near. What is unseen
takes no part. What this file does not know: tokens and grids; rows wider than `WIDEST` features have no points.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from narrows.prepare.transforms import MIDDLE, NARROWEST
from narrows.schema import Batch, Schema
from narrows.tasks.features import category_levels, category_places, features, features_of, seen_features

WIDEST, WIDEST_SERIES = 2_048, 16_384  # features; beyond, distances between all rows say as little as they cost much


@dataclass(frozen=True)
class Space:
    """Where rows lie.

    Args:
        schema: of the rows.
        weight: (F,) of each feature.
    """

    schema: Schema
    weight: Tensor

    @classmethod
    def of(cls, schema: Schema, rows: Batch, common: float = 1.0) -> Space:
        """The space of rows like these (n): levels weighed by how frequent they are there.

        Args:
            schema: of the rows.
            rows: to learn from.
            common: share of rows from which on a level takes no part.
        """
        known = features(rows.dense(), schema)[:, schema.numbers :].mean(0)
        spread = (known * (1 - known)).sqrt()
        middle = ((known >= 0.1) & (known <= 0.9)).float() / MIDDLE  # `asinh_curve` of 0 and 1
        scale = torch.maximum(middle, NARROWEST * spread)
        rare = torch.where(scale > 0, torch.asinh(1 / scale.clamp_min(1e-3)), torch.ones(()))
        return cls(schema, torch.cat([torch.ones(schema.numbers), torch.where(known < common, rare, torch.zeros(()))]))

    @classmethod
    def holds(cls, schema: Schema) -> bool:
        """Whether rows of this schema have points: windows of series do up to a greater width."""
        return 0 < features_of(schema) <= (WIDEST_SERIES if of_series(schema) else WIDEST)

    def points(self, rows: Batch) -> tuple[Tensor, Tensor]:
        """(n, F) points of rows, and (n, F) float which of their features were seen; the rest of a point is 0."""
        rows = rows.dense()
        seen = seen_features(rows, self.schema)
        there = torch.ones(len(rows), len(self.weight)) if seen is None else seen.float()
        return features(rows, self.schema) * self.weight * there, there

    def cells(self, values: Tensor) -> Tensor:
        """(n, C) for each cell the sum of (n, F) for each of its features; 0 for tokens."""
        schema = self.schema
        numbers, levels = values[:, : schema.numbers], values[:, schema.numbers :]
        codes = values.new_zeros(len(values), len(schema.levels))
        sizes = category_levels(schema)
        if sizes:
            parts = torch.split(levels, sizes, dim=1)
            codes[:, category_places(schema)] = torch.stack([part.sum(1) for part in parts], dim=1)
        return torch.cat([numbers, codes], dim=1)


def of_series(schema: Schema) -> bool:
    """Whether rows are windows of series, and nothing else has a grid."""
    return {column.kind for column in schema if column.grid} == {"series"}
