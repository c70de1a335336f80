"""The words for what is done to a column's values, the kinds they go with, and the kind that a word alone implies.

Users write them behind a column's kind, or in place of it where they imply one: `series own`, `chars`, `tfidf`.
"""

from __future__ import annotations

from narrows.schema import Kind

FITTING: dict[Kind, tuple[str, ...]] = {
    "number": ("standardize", "minmax", "quantile", "asinh", "none"),
    "count": ("none",),
    "image": ("standardize", "minmax", "none"),
    "series": ("standardize", "minmax", "none", "own", "joint"),
    "audio": ("wave", "spectra"),
    "tokens": ("chars", "bytes", "words", "bpe"),
    "bag": ("counts", "tfidf"),
}
"""The words that a kind knows; for those after `image` the first is the default. The other kinds know none."""

TRANSFORMS: tuple[str, ...] = tuple(dict.fromkeys(word for fitting in FITTING.values() for word in fitting))

IMPLIED: dict[str, Kind] = {
    "own": "series",
    "joint": "series",
    **dict.fromkeys(FITTING["audio"], "audio"),
    **dict.fromkeys(FITTING["tokens"], "tokens"),
    **dict.fromkeys(FITTING["bag"], "bag"),
}
"""The kind that a word implies, where the user names no other."""

ANY, ANY_SERIES = "*", "*series"
"""In place of a column's name: every column of numbers that no other wish names; `*series`: every series
whose channels differ in size; those of one size are scaled jointly then."""
