"""What a model says of its training, for those who must not rely on it: facts may be missing, or of other shapes.

A model need not come from `fit`; whoever shows its facts shows those that are there.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

from narrows.fitted import Model

Record = dict[str, float]
LARGEST = 2**63  # of whole numbers that anyone counted


def whole(model: Model, name: str) -> int | None:
    """A fact that is a whole number from 0 up, such as `rows`; None where there is none."""
    value = model.facts.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST else None


def records(model: Model) -> list[Record]:
    """The records of the training that tell their epoch and loss, with what is a number in them."""
    found = model.facts.get("records")
    kept = [_numbers(record) for record in found if isinstance(record, dict)] if isinstance(found, list) else []
    return [record for record in kept if "loss" in record and isfinite(record.get("epoch", float("nan")))]


def validation_loss(model: Model) -> float | None:
    """The loss a row, on rows held out from training, of the weights that were kept; a member's where there are many.

    None where no rows were held out, or the model does not tell; nor where groups were balanced, since the loss is then
    not that of rows as they come.
    """
    if balance_of(model) is not None:
        return None
    best, found = whole(model, "best"), model.facts.get("records")
    if best is None or not isinstance(found, list) or best >= len(found) or not isinstance(found[best], dict):
        return None
    loss = _numbers(found[best]).get("val_loss", float("nan"))
    return loss / (model.members or 1) if isfinite(loss) else None  # training sums over members


def balance_of(model: Model) -> str | None:
    """The column whose groups training met equally often; None where there was none."""
    settings = model.facts.get("settings")
    column = settings.get("balance") if isinstance(settings, dict) else None
    return column if isinstance(column, str) else None


def _numbers(record: dict[str, Any]) -> Record:
    numbers = {name: value for name, value in record.items() if isinstance(value, int | float)}
    return {name: float(value) for name, value in numbers.items() if isinstance(value, float) or abs(value) < LARGEST}
