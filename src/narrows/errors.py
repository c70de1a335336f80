"""The few errors a user can meet. Each says what came, what was wanted and what to try."""

from __future__ import annotations


class NarrowsError(Exception):
    """Anything Narrows refuses or cannot do; the command line prints it without a traceback and exits 1.

    Args:
        got: what came, with the name of the file, column or argument it came in.
        wanted: what would have been right; left out where `got` says it already.
        hint: what to try next.
    """

    def __init__(self, got: str, wanted: str = "", hint: str = "") -> None:
        self.got, self.wanted, self.hint = got, wanted, hint
        super().__init__(got, wanted, hint)

    def __str__(self) -> str:
        parts = [
            self.got,
            f"wanted: {self.wanted}" if self.wanted else "",
            f"try: {self.hint}" if self.hint else "",
        ]
        return "; ".join(part for part in parts if part)


class DataError(NarrowsError, ValueError):
    """Rows that cannot be read, or do not fit the columns a model was trained on."""


class SettingError(NarrowsError, ValueError):
    """A setting out of range, unknown, or at odds with another."""


class ModelFileError(NarrowsError, ValueError):
    """A model or checkpoint file that is damaged, foreign or of a newer format."""


class TrainingError(NarrowsError, RuntimeError):
    """Training that cannot go on."""


class WorldError(NarrowsError, RuntimeError):
    """Processes that cannot work together."""


class DataWarning(UserWarning):
    """Rows that are handled, but that a user would want to know of: unseen levels, values far out of range."""


class FitWarning(UserWarning):
    """A model that was trained, but is not what one would want: no better than PCA, or stopped early."""
