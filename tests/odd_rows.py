"""Rows that hang together, cells planted among them, and what is fitted to find these."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from narrows.fitted import Model
from narrows.fitting import Plan, fit
from narrows.schema import Batch
from narrows.tasks.detect import Detector
from narrows.tasks.purposes import detection


def fitted(data: Any, seed: int = 0, all_normal: bool = False, contamination: Any = "auto", **plan: Any) -> Model:
    """A model fitted to detect anomalies, as `narrows fit --for detect` does it."""
    purpose = detection(contamination, all_normal)
    settled = purpose.settle(Plan(purpose.recipe, seed=seed, **plan))
    return fit(data, settled, learn=purpose.learn, core=purpose.core)


def prepared(model: Model, data: Any) -> Batch:
    """All rows as the model reads them."""
    return Batch.concat([batch for _, batch in model.batches(data)])


def correlated(rows: int, seed: int = 0, columns: int = 10) -> pd.DataFrame:
    """Normal columns that three factors move, with noise of their own."""
    rng, mixing = np.random.default_rng(seed), np.random.default_rng(99).normal(size=(3, columns)) / 3**0.5
    values = rng.normal(size=(rows, 3)) @ mixing + 0.4 * rng.normal(size=(rows, columns))
    return pd.DataFrame(values, columns=[f"c{place}" for place in range(columns)])


def mixed(rows: int, seed: int = 0) -> pd.DataFrame:
    """Numbers and levels that two factors move; one of the numbers has a heavy tail."""
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, rows))
    noise = 0.3 * rng.normal(size=(6, rows))
    return pd.DataFrame(
        {
            "a": first + noise[0],
            "b": 2 * first - second + noise[1],
            "kind": np.array(["low", "middle", "high"])[np.digitize(first + noise[2], [-0.6, 0.6])],
            "c": second + noise[3],
            "d": np.exp(first + second + noise[4]),
            "sort": np.array(["w", "x", "y", "z"])[np.digitize(second + noise[5], [-1, 0, 1])],
        }
    )


def planted(frame: pd.DataFrame, seed: int, swap: bool = False) -> tuple[pd.DataFrame, np.ndarray]:
    """A frame with one cell of each row wrong, and the place of that column.

    Numbers lie 4 to 6 standard deviations off, and levels are another row's; with `swap` numbers are too.
    """
    rng, wrong = np.random.default_rng(seed), frame.copy()
    columns = rng.integers(0, frame.shape[1], len(frame))
    for place, name in enumerate(frame.columns):
        rows = np.flatnonzero(columns == place)
        values = frame[name].to_numpy()
        if swap or values.dtype == object:
            others = [rng.choice(values[values != values[row]]) for row in rows]
        else:
            others = values[rows] + rng.choice([-1, 1], len(rows)) * rng.uniform(4, 6, len(rows)) * values.std()
        wrong.iloc[rows, place] = others
    return wrong, columns


def contaminated(frame: pd.DataFrame, share: float = 0.05) -> pd.DataFrame:
    """A frame whose last rows each have a wrong cell."""
    odd = round(share * len(frame))
    return pd.concat([frame.iloc[:-odd], planted(frame.iloc[-odd:], 7)[0]], ignore_index=True)


def blamed_columns(detector: Detector, rows: Batch) -> Tensor:
    """(n, columns) blame of each column of the data."""
    schema, cells = detector.model.schema, detector.blame(rows).cells
    return torch.stack([cells[:, schema.spans[column.name]].sum(1) for column in schema], dim=1)
