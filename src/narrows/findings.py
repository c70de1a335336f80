"""What a diagnosis says of a model: a figure, whether it is a problem, and in words what it means and what to try."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from narrows.errors import ModelFileError


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at after a fit.

    Args:
        name: of what was looked at, such as `posterior collapse`.
        figure: that decides.
        problem: whether something should be done.
        sentence: what the figure means.
        advice: what to try; empty where all is well.
    """

    name: str
    figure: float
    problem: bool
    sentence: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.sentence}" + (f"; try: {self.advice}" if self.advice else "")

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the model file."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Any) -> Finding:
        """The finding that `to_json` wrote.

        Raises:
            ModelFileError: for anything else.
        """
        wanted = {entry.name for entry in fields(cls)}
        if not isinstance(found, Mapping) or set(found) != wanted:
            raise ModelFileError(f"a finding of the diagnosis: {found!r}", f"one with {', '.join(sorted(wanted))}")
        words = all(isinstance(found[name], str) for name in ("name", "sentence", "advice"))
        if not words or not isinstance(found["problem"], bool) or not isinstance(found["figure"], int | float):
            raise ModelFileError(f"a finding of the diagnosis: {found!r}", "words, a number and a flag")
        return cls(**{**found, "figure": float(found["figure"])})
