"""Texts are the lines, or the pieces of characters, that Python's own reading of the file gives."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.errors import DataError
from narrows.sources import text
from narrows.sources.paths import File
from narrows.sources.reading import ASIDE, KIND, Reading, fact, modeled
from narrows.sources.source import BATCH_ROWS, PIECE_BITS, open_source
from narrows.sources.text import open_text

SHARED = Path(__file__).parents[2] / "shared" / "data"
LINES = Reading(form="text")


class Bytes(File):
    """A file in memory."""

    def stream(self):
        return pa.BufferReader(gzip.decompress(bytes.fromhex(self.path)))


def source_of(content, reading):
    if isinstance(content, str):
        content = content.encode()
    return open_text([Bytes("t.txt", gzip.compress(content).hex())], reading)


def rows_of(source):
    return [row for _, batch in source.batches() for row in batch.to_pylist()]


def check(source):
    """Ids rise, skipping skips, batches are small."""
    for piece in source.pieces:
        batches = list(source.read(piece))
        rows = [row for _, batch in batches for row in batch.to_pylist()]
        assert [first + i for first, batch in batches for i in range(len(batch))] == [
            piece << PIECE_BITS | i for i in range(len(rows))
        ]
        assert all(0 < len(batch) <= BATCH_ROWS for _, batch in batches)
        for skip in range(1, len(rows) + 3) if len(rows) < 20 else (1, len(rows) // 2, len(rows)):
            rest = list(source.read(piece, skip))
            assert [row for _, batch in rest for row in batch.to_pylist()] == rows[skip:]
            assert not rest or rest[0][0] == piece << PIECE_BITS | skip
    return source


CHARACTERS = st.text(st.sampled_from("ab \n\ré\u2028€𝄞\t\0"), max_size=60)


@settings(max_examples=80, deadline=None)
@given(CHARACTERS, st.integers(1, 9))
def test_lines_are_those_between_newlines(content, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_BLOCK_BYTES", block)
        source = check(source_of(content, LINES))
        got = [(row["line"], row["text"]) for row in rows_of(source)]
    lines = enumerate(content.split("\n"), 1)
    assert got == [(number, line.removesuffix("\r")) for number, line in lines if line.strip()]


@settings(max_examples=120, deadline=None)
@given(CHARACTERS, st.integers(1, 9), st.integers(1, 12), st.integers(1, 12))
def test_pieces_are_slices_and_nothing_is_lost(content, block, window, stride):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_BLOCK_BYTES", block)
        source = check(source_of(content, Reading(form="text", window=window, stride=stride)))
        got = [(row["start"], row["text"]) for row in rows_of(source)]
    starts = [at for at in range(0, len(content), stride) if at + window <= len(content)]
    covered = starts[-1] + window if starts else 0
    tail = len(starts) * stride
    starts += [tail] if covered < len(content) and tail < len(content) else []
    assert got == [(at, content[at : at + window]) for at in starts]
    if stride <= window:
        assert set(range(len(content))) == {i for at, piece in got for i in range(at, at + len(piece))}


def test_columns_and_files(tmp_path):
    for name, content in (("a.txt", b"one\ntwo\n"), ("b.txt", b"\xef\xbb\xbfthree\r\n\r\nfour")):
        (tmp_path / name).write_bytes(content)
    source = check(open_source(tmp_path, reading=LINES))
    assert [(row["text"], row["line"], row["path"][-5:]) for row in rows_of(source)] == [
        ("one", 1, "a.txt"),
        ("two", 2, "a.txt"),
        ("three", 1, "b.txt"),
        ("four", 3, "b.txt"),
    ]
    (field,) = modeled(source.schema)
    assert (field.name, field.type, fact(field, KIND)) == ("text", pa.string(), "tokens")
    single = open_source(tmp_path / "a.txt", reading=LINES)
    assert single.schema.names == ["text", "line"] and fact(single.schema.field("line"), ASIDE)
    cut = open_source(tmp_path / "a.txt", reading=Reading(form="text", window=5))
    assert rows_of(cut) == [{"text": "one\nt", "start": 0}, {"text": "wo\n", "start": 5}]
    assert cut.rows is None


@pytest.mark.parametrize("compress", [gzip.compress, lambda data: pa.compress(data, "zstd", asbytes=True)])
def test_compressed_texts(tmp_path, compress):
    (tmp_path / "t.txt.x").write_bytes(compress("eins\nzwölf\n".encode() * 1000))
    source = open_source(tmp_path / "t.txt.x", reading=LINES)
    assert [row["text"] for row in rows_of(source)] == ["eins", "zwölf"] * 1000


@pytest.mark.parametrize("settings", [{}, {"window": 4}])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"good\nalso\nb\xe4d\n", r"line 3, byte 11: 0xe4 is no UTF-8.*iconv"),
        (b"good\n\n\xff", "line 3, byte 6: 0xff"),
        (b"good\ncut \xe2\x82", "line 2, byte 9: 0xe2"),
        (b"a\n\xc0\x80", "line 2, byte 2: 0xc0"),
        (b"a\n\xed\xa0\x80", "line 2, byte 2: 0xed"),
    ],
)
@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_bytes_that_are_no_text_are_named(monkeypatch, content, message, settings, block):
    monkeypatch.setattr(text, "_BLOCK_BYTES", block)
    with pytest.raises(DataError, match=r"t\.txt " + message):
        rows_of(source_of(content, Reading(form="text", **settings)))


def test_truncated_archives_are_named(tmp_path):
    (tmp_path / "t.txt.gz").write_bytes(gzip.compress(bytes(range(97, 123)) * 5000)[:-30])
    with pytest.raises(DataError, match=r"t\.txt\.gz cannot be read"):
        rows_of(open_source(tmp_path / "t.txt.gz", reading=LINES))


def test_long_texts_come_in_short_batches(monkeypatch):
    monkeypatch.setattr(text, "BATCH_BYTES", 100)
    source = check(source_of("abcdefghij" * 50, Reading(form="text", window=30, stride=1)))
    assert max(len(batch) for _, batch in source.batches()) == 3
    many = source_of("x\n" * 70_000, LINES)
    assert [len(batch) for _, batch in many.batches()] == [65_536, 4_464]


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared data")
def test_a_real_text():
    path = SHARED / "plato_republic" / "republic_clean.txt.gz"
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        whole = file.read()
    pieces = [row["text"] for row in rows_of(open_source(path, reading=Reading(form="text", window=256)))]
    assert "".join(pieces) == whole.removeprefix("\ufeff")
    assert {len(piece) for piece in pieces[:-1]} == {256}
