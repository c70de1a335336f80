"""The section on whether a model that makes rows makes copies of those it is shown beside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from narrows.errors import NarrowsError
from narrows.fitted import Model
from narrows.tasks.holes import fills
from narrows.tasks.prior import PART as PRIOR
from narrows.tasks.privacy import NEAR, privacy


@dataclass(frozen=True)
class Copies:
    """What the section shows.

    Args:
        sentence: what was found.
        lines: (what, of generated rows, of real ones).
        worry: whether generated rows are nearer to training rows than real ones are to each other.
    """

    sentence: str
    lines: list[tuple[str, str, str]]
    worry: bool


def copies(model: Model, source: Any) -> Copies | None:
    """How near generated rows are to the rows of the page; None for a model that was not made to generate tables."""
    if not (fills(model) or PRIOR in model.parts):
        return None
    try:
        found = privacy(model, source)
    except NarrowsError:  # images, series and the like have no such distances; a lone row has nobody beside it
        return None
    lines = [
        ("equal to a row of the data", f"{found.copies / found.rows:.1%}", f"{found.real_copies:.1%}"),
        ("nearer than all but a twentieth of real rows", f"{found.near:.1%}", f"{NEAR:.1%}"),
        ("median distance to the nearest", f"{found.median:.3g}", f"{found.real_median:.3g}"),
    ]
    return Copies(str(found), lines, found.near > 2 * NEAR)
