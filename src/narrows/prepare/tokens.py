"""Texts to token codes and back: characters, bytes, words, or pairs merged by frequency (BPE).

    texts (B,) -> codes (B, T): the known tokens, then the end mark `levels - 1`, then `levels`, which are not seen

A token that training did not keep has the code `levels` too, but is seen. Texts of more than T tokens are cut; those of
exactly T have no end mark. Characters and bytes are laid out by whole columns; words and BPE cost a call for each text.
Only BPE needs a library (Sennrich, Haddow and Birch 2016; over bytes as in Radford et al. 2019).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from narrows.errors import SettingError
from narrows.prepare.arrow import Values, cast_all, plain
from narrows.prepare.arrow_types import Type, is_text
from narrows.prepare.categories import Codes
from narrows.prepare.words import FITTING

LONGEST = 512  # tokens of a text: a decoder writes as many times as many levels numbers a row
KNOWN = 4096  # tokens of a vocabulary: the usual size of a small BPE, and more characters than most texts have
BYTES = 256
SURPRISING = 0.01  # share of unknown tokens, beyond twice that of training, that is worth a word
TEXTS = 1000  # whose characters are counted at once
STRANGE = "\N{REPLACEMENT CHARACTER}"
WORD = re.compile(r" ?\w+| ?[^\w\s]+|\s")  # a space belongs to the word behind it, so that nothing is lost

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Laid:
    """Texts laid out.

    Args:
        codes: (B, T).
        seen: (B, T) tokens and end marks; nothing of a missing text.
        cut: texts that were longer.
        unknown: an unknown token, if more came than in training.
    """

    codes: Codes
    seen: Mask
    cut: int
    unknown: str | None


@dataclass(frozen=True)
class Vocabulary:
    """The known tokens of a text column.

    Args:
        method: chars, bytes, words or bpe.
        length: T, most tokens of a text.
        tokens: by code, the most frequent first; empty for bytes. Those of BPE stand for bytes (see `_byte_level`).
        merges: pairs of tokens in the order in which BPE merges them.
        rest: share of the tokens of training that are not known.
    """

    method: str
    length: int
    tokens: tuple[str, ...] = ()
    merges: tuple[tuple[str, str], ...] = ()
    rest: float = 0.0

    @property
    def levels(self) -> int:
        """Known tokens, with the end mark, which is the last."""
        return (BYTES if self.method == "bytes" else len(self.tokens)) + 1

    def check(self) -> None:
        """Checks that the parts belong together.

        Raises:
            ValueError: where they do not.
            SettingError: for BPE without the library.
        """
        built = all({left, right, left + right} <= set(self._codes) for left, right in self.merges)
        sized = 0 < self.length <= LONGEST and 0 <= self.rest <= 1
        fits = sized and built and (self.method == "bpe" or not self.merges)
        distinct = all(self.tokens) and len(self._codes) == len(self.tokens) > 0
        single = self.method != "chars" or all(len(token) == 1 for token in self.tokens)
        if not (fits and (not self.tokens if self.method == "bytes" else distinct and single)):
            raise ValueError("the tokens of a vocabulary do not fit together")
        if self.method not in FITTING["tokens"]:
            raise ValueError(f"tokens by {self.method!r}")
        if self.method == "bpe":
            self._split([""])

    def encode(self, array: Values, column: str, first_row: int = 0) -> Laid:
        """Texts to codes; values of other types are taken for what they are as texts.

        Raises:
            DataError: where values cannot be texts.
        """
        texts = plain(array)
        if not is_text(texts.type):
            texts = cast_all(texts, pa.large_string(), column, "texts, as in training", first_row)
        missing = np.asarray(texts.is_null())
        flat, lengths = self._flat(texts.fill_null(""))
        codes, seen = self._layout(flat, lengths, missing)
        strange = np.flatnonzero(flat == self.levels)
        surprised = len(strange) > (2 * self.rest + SURPRISING) * len(flat)
        unknown = self._spelled(texts.fill_null(""), lengths, int(strange[0])) if surprised else None
        return Laid(codes, seen, int((lengths > self.length).sum()), unknown)

    def _flat(self, texts: Values) -> tuple[Codes, Codes]:
        """The codes of all texts one behind the other, and how many each has: at most one more than are kept."""
        if self.method in ("chars", "bytes"):
            return self._of_characters(texts)
        split = [tokens[: self.length + 1] for tokens in self._split(texts.to_pylist())]
        known = self._codes
        flat = np.fromiter((known.get(token, self.levels) for token in chain(*split)), np.int64)
        return flat, np.array([len(tokens) for tokens in split], np.int64)

    def _of_characters(self, texts: Values) -> tuple[Codes, Codes]:
        if self.method == "bytes":
            short = pc.binary_slice(texts.cast(pa.large_binary()), 0, self.length + 1)
            return flat_bytes(short).astype(np.int64), np.asarray(pc.binary_length(short).to_numpy(), dtype=np.int64)
        short = pc.utf8_slice_codeunits(texts, 0, self.length + 1)
        points, order = flat_characters(short), self._points
        at = np.minimum(np.searchsorted(order[0], points), len(order[0]) - 1)
        codes = np.where(order[0][at] == points, order[1][at], self.levels)
        return codes, np.asarray(pc.utf8_length(short).to_numpy(), dtype=np.int64)

    def _layout(self, flat: Codes, lengths: Codes, missing: Mask) -> tuple[Codes, Mask]:
        places = np.arange(self.length)
        within = places < lengths[:, None]
        starts = np.cumsum(lengths) - lengths
        codes = np.full(within.shape, self.levels, np.int64)
        codes[within] = flat[(starts[:, None] + places)[within]]
        ended = np.flatnonzero((lengths < self.length) & ~missing)
        codes[ended, lengths[ended]] = self.levels - 1
        return codes, (places <= lengths[:, None]) & ~missing[:, None]

    def _spelled(self, texts: Values, lengths: Codes, at: int) -> str:
        """The token at a place among the codes of all texts."""
        row = int(np.searchsorted(np.cumsum(lengths), at, "right"))
        place = at - int(lengths[:row].sum())
        text = texts[row].as_py()
        return str(text[place] if self.method == "chars" else next(iter(self._split([text])))[place])

    @cached_property
    def _points(self) -> tuple[npt.NDArray[np.uint32], Codes]:
        """The known characters as sorted code points, and their codes."""
        points = np.array([ord(token) for token in self.tokens], np.uint32)
        order = np.argsort(points)
        return points[order], order

    @cached_property
    def _codes(self) -> dict[str, int]:
        return {token: code for code, token in enumerate(self.tokens)}

    @cached_property
    def _merger(self) -> Any:
        return _byte_level(dict(self._codes), list(self.merges))

    def _split(self, texts: list[str]) -> list[list[str]]:
        """The tokens of each text."""
        if self.method == "words":
            return [WORD.findall(text) for text in texts]
        return [encoding.tokens for encoding in self._merger.encode_batch(texts)]

    def decode(self, codes: Codes) -> list[str | None]:
        """(B, T) codes to texts, up to the first end mark; None where every code says that nothing is there.

        An unknown token becomes U+FFFD, and so do bytes that are no UTF-8.
        """
        end = self.levels - 1
        ends = np.where((codes == end).any(axis=1), (codes == end).argmax(axis=1), self.length)
        absent: Mask = np.all((codes < 0) | (codes > end), axis=1)
        texts = [self._text(row[:stop]) for row, stop in zip(codes, ends, strict=True)]
        return [None if gone else text for gone, text in zip(absent, texts, strict=True)]

    def _text(self, codes: Codes) -> str:
        known = (codes >= 0) & (codes < self.levels - 1)
        if self.method == "bytes":
            return np.where(known, codes, 0xFF).astype(np.uint8).tobytes().decode("utf-8", errors="replace")
        tokens = [self.tokens[code] if there else STRANGE for code, there in zip(codes.tolist(), known, strict=True)]
        if self.method == "bpe":
            return str(self._merger.decoder.decode([token for token in tokens if token != STRANGE]))
        return "".join(tokens)

    def write(self, codes: Codes, arrow: Type) -> Values:
        """(B, T) codes as a column of texts of this type."""
        return pa.array(self.decode(codes), pa.large_string()).cast(arrow)


def learn_vocabulary(method: str, texts: Values, longest: int) -> Vocabulary:
    """The vocabulary of sampled texts: their most frequent tokens, at most 4,096.

    Args:
        method: chars, bytes, words or bpe.
        texts: the sample.
        longest: characters or bytes of the longest of all texts; for words and BPE the sample tells.

    Raises:
        SettingError: for BPE without the library.
    """
    if method == "bytes":
        return Vocabulary(method, _length(longest))
    if method == "chars":
        counts = _characters(texts)
        points = sorted(np.flatnonzero(counts).tolist(), key=lambda point: -counts[point])[:KNOWN]
        kept = tuple(map(chr, points)) or (" ",)
        return Vocabulary(method, _length(longest), kept, rest=1 - _share(counts[points].sum(), counts.sum()))
    plain_texts = texts.to_pylist()
    if method == "bpe":
        tokens, merges = _merged(plain_texts)
        split = Vocabulary(method, 1, tokens, merges)._split(plain_texts)
        return Vocabulary(method, _length(max(map(len, split))), tokens, merges)
    split = [WORD.findall(text) for text in plain_texts]
    often = Counter(chain(*split))
    known = sorted(often, key=lambda word: (-often[word], word))[:KNOWN]
    rest = 1 - _share(sum(often[word] for word in known), often.total())
    return Vocabulary(method, _length(max(map(len, split))), tuple(known) or (" ",), rest=rest)


def _length(longest: int) -> int:
    return max(1, min(LONGEST, longest))


def _share(part: int, whole: int) -> float:
    return float(part / whole) if whole else 1.0


def _characters(texts: Values) -> Codes:
    """How often each code point occurs."""
    counts = np.zeros(0x110000, np.int64)
    for start in range(0, len(texts), TEXTS):
        found = np.bincount(flat_characters(texts[start : start + TEXTS]))
        counts[: len(found)] += found
    return counts


def flat_bytes(texts: Values) -> npt.NDArray[np.uint8]:
    """The bytes of all values of a large_string or large_binary array without nulls."""
    _, offsets, data = texts.buffers()
    if data is None:
        return np.zeros(0, np.uint8)
    bounds = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]]


def flat_characters(texts: Values) -> npt.NDArray[np.uint32]:
    """The code points of all values of a large_string array without nulls."""
    return np.frombuffer(flat_bytes(texts).tobytes().decode("utf-8").encode("utf-32-le"), np.uint32)


def _merged(texts: list[str]) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Tokens by code and merges, of BPE trained on these texts."""
    merger = _byte_level({}, [])
    from tokenizers import pre_tokenizers, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=KNOWN, initial_alphabet=alphabet, show_progress=False)
    merger.train_from_iterator(texts, trainer)
    learnt = json.loads(merger.to_str())["model"]
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in learnt["merges"])
    return tuple(sorted(learnt["vocab"], key=learnt["vocab"].get)), tuple((left, right) for left, right in pairs)


def _byte_level(tokens: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """A tokenizer of these tokens and merges, over bytes, each of which has a visible character that stands for it.

    Raises:
        SettingError: without the library.
    """
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    except ImportError as error:
        raise SettingError("tokens by 'bpe' without tokenizers", hint="pip install 'narrows[text]'") from error
    merger = Tokenizer(models.BPE(vocab=tokens, merges=merges))
    merger.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    merger.decoder = decoders.ByteLevel()
    return merger
