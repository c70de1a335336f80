"""Series, sounds, texts, bags, counts and images to cells and back: round trips, oracles, merges, and odd input."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import random
import warnings
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

from narrows.errors import DataError, DataWarning, ModelFileError, SettingError
from narrows.prepare.arrow_types import canonical, parse_type
from narrows.prepare.examples import Examples
from narrows.prepare.preparer import Preparer
from narrows.prepare.statistics import Statistics
from narrows.schema import Batch
from narrows.sources.reading import CHANNELS, KIND, RATE, fact, field

LETTERS = "abc äöß \n\t.,!\U0001f600日本"


def collect(rows: pa.RecordBatch, size: int = 1000, first_row: int = 0) -> Statistics:
    statistics = Statistics(rows.schema)
    for start in range(0, len(rows), size):
        statistics.update(rows.slice(start, size), first_row + start)
    return statistics


def stored(preparer: Preparer) -> Preparer:
    """The preparer as a file keeps it."""
    facts, tensors = preparer.to_file()
    return Preparer.from_file(json.loads(json.dumps(facts, allow_nan=False)), tensors)


def learn(rows: pa.RecordBatch, word: str = "", **wishes: Any) -> Preparer:
    """A preparer, stored and loaded; `word` is the transform of the first column."""
    transforms = {rows.schema.names[0]: word} if word else {}
    return stored(Preparer.learn(collect(rows), transforms=transforms, **wishes))


def one(array: Any, **facts: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([array], schema=pa.schema([field("x", array.type, **facts)]))


def block(values: np.ndarray, **facts: Any) -> pa.RecordBatch:
    return one(pa.FixedShapeTensorArray.from_numpy_ndarray(values), **facts)


def back(preparer: Preparer, batch: Batch) -> pa.Array:
    """The only column, restored; bags from the shares of their items."""
    numbers, dense = batch.dense().numbers.clone(), preparer.schema.dense
    numbers[:, dense:] /= numbers[:, dense:].sum(1, keepdim=True).clamp_min(1e-9)
    return preparer.restore(numbers, batch.codes).column(0)


def lists(seed: int, rows: int = 30, channels: int = 2, longest: int = 12) -> pa.Array:
    """Series of lengths 0 to 12, some missing, some with missing steps."""
    rng = np.random.default_rng(seed)
    series = [rng.normal(3, 2, (rng.integers(0, longest + 1), channels)) for _ in range(rows)]
    series[0] = rng.normal(3, 2, (longest, channels))
    values = [None if i and rng.random() < 0.1 else one.tolist() for i, one in enumerate(series)]
    return pa.array(values, pa.list_(pa.list_(pa.float64(), channels)))


# columns that stand aside, and what sources say of the others


def test_columns_aside_are_neither_learnt_nor_mentioned() -> None:
    entries = [field("x", pa.float64()), field("path", pa.string(), aside=True), field("odd", pa.binary(), aside=True)]
    arrays = [pa.array([1.0, 2.0, 4.0]), pa.array(list("abc")), pa.array([b""] * 3)]
    rows = pa.RecordBatch.from_arrays(arrays, schema=pa.schema(entries))
    preparer = learn(rows)
    assert preparer.schema.names == ["x"]
    assert preparer.prepare(rows).numbers.shape == (3, 1)
    lone = pa.schema([field("m", pa.fixed_shape_tensor(pa.float32(), [2])), *entries[1:]])
    matrix = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ones((3, 2), np.float32))
    with_label = pa.RecordBatch.from_arrays([matrix, *rows.columns[1:]], schema=lone)
    assert learn(with_label).prepare(with_label).numbers.shape == (3, 2)
    with pytest.raises(DataError, match="without columns"):
        Statistics(pa.schema(entries[1:]))


def test_hints_of_the_source_are_defaults_that_users_override() -> None:
    rows = block(np.random.default_rng(0).random((9, 6, 2)), kind="series", channels=["a", "b"])
    assert learn(rows).schema["x"].kind == "series"
    assert learn(rows, kinds={"x": "image"}).schema["x"].kind == "image"
    texts = one(pa.array(["ab", "ba", "ab", "b"]), kind="tokens")
    assert learn(texts).schema["x"].kind == "tokens"
    assert learn(texts, kinds={"x": "category"}).schema["x"].kind == "category"
    odd = one(pa.array([1.0, 2.0, 3.0]), kind="image")
    assert learn(odd).schema["x"].kind == "number"


def test_restored_fields_say_what_the_source_said() -> None:
    sound = block(np.random.default_rng(0).random((9, 50, 2)), kind="audio", rate=8000)
    entry = learn(sound).arrow_schema.field("x")
    assert (fact(entry, KIND), fact(entry, RATE)) == ("audio", "8000")
    series = block(np.random.default_rng(0).random((9, 6, 2)), kind="series", channels=["a", "b"])
    entry = learn(series).restore(torch.zeros(1, 12), torch.zeros(1, 0)).schema.field("x")
    assert fact(entry, KIND) == "series" and json.loads(fact(entry, CHANNELS)) == ["a", "b"]
    plain = learn(one(pa.array([1.0, 2.0, 3.0]))).arrow_schema.field("x")
    assert plain.metadata is None


@pytest.mark.parametrize(
    ("word", "kind"), [("own", "series"), ("wave", "audio"), ("spectra", "audio"), ("standardize", "image")]
)
def test_words_imply_kinds(word: str, kind: str) -> None:
    assert learn(block(np.random.default_rng(0).random((9, 40, 2))), word).schema["x"].kind == kind


@pytest.mark.parametrize(("word", "kind"), [("chars", "tokens"), ("words", "tokens"), ("tfidf", "bag")])
def test_words_imply_kinds_of_texts(word: str, kind: str) -> None:
    assert learn(one(pa.array(["one two", "two", "three"])), word).schema["x"].kind == kind


@pytest.mark.parametrize(
    ("rows", "wishes"),
    [
        (one(pa.array([1, 2, 3])), {"kinds": {"x": "series"}}),
        (one(pa.array(["a", "b", "c"])), {"kinds": {"x": "count"}}),
        (one(pa.array(["a", "b", "c"])), {"kinds": {"x": "tokens"}, "transforms": {"x": "tfidf"}}),
        (one(pa.array([1, 2, 3]).dictionary_encode()), {"kinds": {"x": "tokens"}}),
        (one(pa.array([[1.0], [2.0]])), {"kinds": {"x": "number"}}),
        (one(pa.array([[1.0], [2.0]])), {"transforms": {"x": "quantile"}}),
        (block(np.zeros((3, 2, 2, 2))), {"kinds": {"x": "series"}}),
    ],
)
def test_wishes_that_do_not_fit_are_refused(rows: pa.RecordBatch, wishes: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        Preparer.learn(collect(rows), **wishes)


# images and counts


@pytest.mark.parametrize(("shape", "grid"), [((5, 4), (5, 4, 1)), ((5, 4, 3), (5, 4, 3)), ((2, 3, 4, 3), ())])
def test_images_have_grids(shape: tuple[int, ...], grid: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 256, (9, *shape)).astype(np.uint8)
    preparer = learn(block(values))
    assert preparer.schema["x"].grid == grid
    batch = preparer.prepare(block(values))
    np.testing.assert_array_equal(back(preparer, batch).to_numpy_ndarray(), values)


def test_images_of_older_files_get_their_grid() -> None:
    facts, tensors = learn(block(np.random.default_rng(0).random((9, 5, 4)))).to_file()
    for column in facts["columns"]:
        del column["grid"], column["rate"]
    older = {"columns": facts["columns"], "levels": facts["levels"]}
    assert Preparer.from_file(older, tensors).schema["x"].grid == (5, 4, 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(), (5,), (3, 4)]))
def test_counts_are_taken_as_they_are(seed: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    values = rng.negative_binomial(2, 0.1, (20, *shape))
    rows = block(values) if shape else one(pa.array(values))
    preparer = learn(rows, kinds={"x": "count"})
    column, batch = preparer.schema["x"], preparer.prepare(rows)
    assert column.kind == "count" and not column.bounded and column.grid == ((3, 4, 1) if len(shape) == 2 else ())
    np.testing.assert_array_equal(batch.numbers.numpy(), values.reshape(20, -1))
    assert back(preparer, batch).equals(rows.column(0))
    guesses = preparer.restore(batch.numbers + 0.4 - 9 * (batch.numbers == 0), batch.codes).column(0)
    assert guesses.equals(rows.column(0))


def test_missing_counts_hold_the_mean_and_others_are_refused() -> None:
    rows = one(pa.array([0.0, None, 6.0, 3.0, 3.0]))
    preparer = learn(rows, kinds={"x": "count"})
    assert preparer.prepare(rows).numbers[:, 0].tolist() == [0, 3, 6, 3, 3]
    with pytest.raises(DataError, match=r"'x', row 1 \(.*\): 2.5"):
        preparer.prepare(one(pa.array([1.0, 2.5])))
    with pytest.raises(DataError, match=r"'x', row 0 \(.*\): -1"):
        preparer.prepare(one(pa.array([-1, 2])))
    for values, bad in (([1.0, 2.5], "2.5"), ([3, -4], "-4"), ([1, 3_000_000], "3000000")):
        with pytest.raises(SettingError, match=f"it has a value of {bad}"):
            Preparer.learn(collect(one(pa.array(values))), kinds={"x": "count"})


# series


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["standardize", "minmax", "none", "own", "joint"]),
    st.sampled_from([(), (1,), (3,)]),
)
def test_windows_come_back(seed: int, word: str, channels: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(5, 3, (20, 7, *channels)) * rng.lognormal(size=(20, 1) + (1,) * len(channels))
    rows = block(values, kind="series")
    preparer = learn(rows, word)
    column, batch = preparer.schema["x"], preparer.prepare(rows)
    assert column.grid == (7, *(channels or (1,))) and column.side == 2 * column.grid[1] * (word == "own")
    assert batch.seen is None and batch.numbers.isfinite().all()
    np.testing.assert_allclose(back(preparer, batch).to_numpy_ndarray(), values, atol=1e-5 * np.abs(values).max())


def test_channels_are_scaled_by_all_their_steps() -> None:
    values = np.random.default_rng(0).normal([0, 100], [1, 9], (200, 5, 2))
    flat = values.reshape(-1, 2)
    for word, expected in (
        ("standardize", (flat - flat.mean(0)) / flat.std(0)),
        ("minmax", (flat - flat.min(0)) / np.ptp(flat, axis=0)),
        ("none", flat),
        ("joint", (flat - flat.mean(0)) / np.sqrt(flat.var(0).mean())),
    ):
        preparer = learn(block(values, kind="series"), word)
        numbers = preparer.prepare(block(values)).numbers.numpy()
        np.testing.assert_allclose(numbers.reshape(-1, 2), expected, rtol=1e-5, atol=1e-5)
        assert preparer.schema["x"].bounded == (word == "minmax")


@pytest.mark.parametrize(("sizes", "word"), [([1, 9, 0], "joint"), ([1, 11, 5], "minmax"), ([0, 0, 0], "minmax")])
def test_channels_of_one_size_are_scaled_jointly_where_any_series_is_wished_for(sizes: list[int], word: str) -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (50, 5, 3))
    values[0, 0], values[0, 1] = 1, -1
    rows = block(values * sizes, kind="series")
    chosen = Preparer.learn(collect(rows), transforms={"*series": "minmax"})
    assert torch.equal(chosen.prepare(rows).numbers, learn(rows, word).prepare(rows).numbers)
    assert torch.equal(learn(rows).prepare(rows).numbers, learn(rows, "standardize").prepare(rows).numbers)


def test_each_row_has_its_own_scale() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(300, 40, 2)) * rng.lognormal(size=(300, 1, 2)) + 50 * rng.normal(size=(300, 1, 2))
    values[7] = 4.0  # constant
    preparer = learn(block(values, kind="series"), "own")
    numbers = preparer.prepare(block(values)).numbers.numpy()
    shapes, side = numbers[:, :80].reshape(300, 40, 2), numbers[:, 80:]
    others = np.arange(300) != 7
    expected = (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True).clip(1e-9)
    np.testing.assert_allclose(shapes[others], expected[others], atol=1e-4)
    assert (shapes[7] == 0).all()
    np.testing.assert_allclose(side.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(side.std(0), 1, atol=1e-5)
    means, spreads = values.mean(1), np.log(values.std(1)[others])
    np.testing.assert_allclose(np.corrcoef(side[:, 0], means[:, 0])[0, 1], 1, atol=1e-6)
    np.testing.assert_allclose(np.corrcoef(side[others][:, 3], spreads[:, 1])[0, 1], 1, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from(["standardize", "minmax", "none", "own", "wave"]), st.sampled_from([1, 3])
)
def test_series_of_any_length_come_back(seed: int, word: str, channels: int) -> None:
    rows = one(lists(seed, channels=channels))
    preparer = learn(rows, word)
    column, batch = preparer.schema["x"], preparer.prepare(rows)
    assert column.holes and column.grid == (12, channels)
    assert column.side == 1 + 2 * channels * (word == "own")
    mask = batch.mask()[:, : 12 * channels].reshape(-1, 12, channels)
    restored = back(preparer, batch)
    for there, before, after in zip(mask, rows.column(0).to_pylist(), restored.to_pylist(), strict=True):
        assert there.all(1).sum() == len(before or []) and (before is None or len(after) == len(before))
        np.testing.assert_allclose(after if before else [], before or [], atol=1e-4)
    missing = torch.from_numpy(np.asarray(rows.column(0).is_null()))
    assert not batch.mask()[missing].any() and (batch.mask()[~missing, 12 * channels]).all()
    assert restored.type == rows.column(0).type


def test_padding_holds_the_training_mean_and_plain_lists_do() -> None:
    rows = one(pa.array([[1, 2, 3], [4], None, []], pa.large_list(pa.int16())))
    preparer = learn(rows)
    batch = preparer.prepare(rows)
    assert batch.seen[:, :3].tolist() == [[True] * 3, [True, False, False], [False] * 3, [False] * 3]
    assert batch.numbers[:, :3][~batch.seen[:, :3]].abs().max() < 1e-6
    assert back(preparer, batch).to_pylist()[:2] == [[1, 2, 3], [4]]
    slices = preparer.prepare(rows.slice(1, 2))
    assert torch.equal(slices.numbers, batch.numbers[1:3]) and torch.equal(slices.mask(), batch.mask()[1:3])


def test_longer_series_are_cut_with_a_warning_and_far_too_long_ones_refused() -> None:
    preparer = learn(one(pa.array([[1.0, 2.0], [3.0]])))
    with pytest.warns(DataWarning, match="1 of 2 series are longer than the 2 steps of training: cut"):
        batch = preparer.prepare(one(pa.array([[1.0, 2.0, 3.0], [2.0]])))
    assert back(preparer, batch).to_pylist() == [pytest.approx([1.0, 2.0]), pytest.approx([2.0])]
    with pytest.raises(DataError, match=r"a series of 65,537 steps.*window="):
        Preparer.learn(collect(one(pa.array([[0.0] * 65_537]))))
    with pytest.raises(DataError, match=r"'x' came as .*; wanted: lists with 1 numbers a step"):
        preparer.prepare(one(pa.array([[[1.0, 2.0]]], pa.list_(pa.list_(pa.float64(), 2)))))
    with pytest.raises(DataError, match=r"'x', row 1 \(.*\): an infinite value"):
        preparer.prepare(one(pa.array([[1.0], [2.0, np.inf]])))
    with pytest.raises(DataError, match=r"'x', row 1 \(.*\): an infinite value"):
        collect(one(pa.array([[1.0], [2.0, np.inf]])))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 60), min_size=1, max_size=4), st.randoms())
def test_merged_parts_learn_what_one_pass_does(seed: int, cuts: list[int], order: Any) -> None:
    rng = np.random.default_rng(seed)
    bags = [[(int(k), float(rng.integers(1, 9))) for k in set(rng.zipf(1.5, 4) % 50)] for _ in range(60)]
    texts = ["".join(rng.choice(list(LETTERS), rng.integers(0, 20))) for _ in range(60)]
    columns = {"s": lists(seed, 60), "t": pa.array(texts), "b": pa.array(bags, pa.map_(pa.int64(), pa.float32()))}
    rows = pa.RecordBatch.from_pydict(columns)
    parts = [collect(rows.slice(a, b - a), 7, a) for a, b in itertools.pairwise(sorted({0, 60, *cuts}))]
    order.shuffle(parts)
    merged = parts[0]
    for part in parts[1:]:
        merged.merge(part)
    assert merged.fingerprint() == collect(rows, 13).fingerprint()
    facts, tensors = Preparer.learn(merged, transforms={"t": "chars", "s": "own", "b": "tfidf"}).to_file()
    whole, expected = Preparer.learn(collect(rows, 13), transforms={"t": "chars", "s": "own", "b": "tfidf"}).to_file()
    assert facts["texts"] == whole["texts"] and facts["columns"] == whole["columns"]
    assert facts["bags"]["b"]["names"] == whole["bags"]["b"]["names"]
    for name, tensor in expected.items():
        torch.testing.assert_close(tensors[name], tensor, rtol=1e-9, atol=1e-9)


def test_examples_are_bounded_and_the_same_however_they_are_cut() -> None:
    rng = np.random.default_rng(0)
    texts = pa.array(["x" * int(n) for n in rng.integers(0, 2000, 3000)], pa.large_string())
    ids = np.arange(3000)

    def gathered(size: int, backwards: bool = False) -> list[str]:
        starts = range(0, 3000, size)
        parts = []
        for start in starts:
            part = Examples(pa.large_string(), rows=500, bytes=100_000)
            part.update(ids[start : start + size], texts[start : start + size])
            parts.append(part)
        parts = parts[::-1] if backwards else parts
        for part in parts[1:]:
            parts[0].merge(part)
        return parts[0].values().to_pylist()

    kept = gathered(3000)
    assert 50 < len(kept) < 150 and sum(map(len, kept)) <= 100_000
    assert kept == gathered(17) == gathered(500, backwards=True)
    assert np.mean([len(text) for text in kept]) == pytest.approx(1000, rel=0.2)


# sounds


def tones(lengths: list[int]) -> list[np.ndarray]:
    return [0.3 * np.sin(2 * np.pi * (200 + 150 * i) * np.arange(n) / 8000) for i, n in enumerate(lengths)]


def test_waves_are_divided_by_one_spread() -> None:
    values = np.random.default_rng(0).normal(0, [0.1, 0.3], (20, 50, 2)).astype(np.float32)
    rows = block(values, kind="audio", rate=8000)
    preparer = learn(rows)
    assert preparer.schema["x"].rate == 8000 and preparer.schema["x"].grid == (50, 2)
    np.testing.assert_allclose(
        preparer.prepare(rows).numbers.numpy().reshape(values.shape), values / values.std(), 1e-5
    )
    whole = block((values * 32767).astype(np.int16), kind="audio", rate=8000)
    preparer = learn(whole)
    assert back(preparer, preparer.prepare(whole)).equals(whole.column(0))


def test_sounds_become_spectra_and_sound_alike() -> None:
    fixed = np.stack([(32_767 * tone).astype(np.int16) for tone in tones([4000] * 4)])
    for values in (fixed, np.stack([fixed, fixed[::-1]], axis=2)):
        rows = block(values, kind="audio", rate=8000)
        preparer = learn(rows, "spectra")
        column, batch = preparer.schema["x"], preparer.prepare(rows)
        channels = 1 if values.ndim == 2 else 2
        assert column.grid == (33, 64 * channels) and column.side == 0 and batch.seen is None
        bins = batch.numbers.reshape(-1, 64 * channels)
        torch.testing.assert_close(bins.mean(0), torch.zeros(64 * channels), atol=1e-4, rtol=0)
        torch.testing.assert_close(bins.std(0, correction=0), torch.ones(64 * channels), atol=1e-3, rtol=0)
        again = preparer.prepare(preparer.restore(batch.numbers, batch.codes))
        assert (again.numbers - batch.numbers).abs().mean() < 0.25


def test_spectra_of_ragged_sounds_end_where_they_do() -> None:
    sounds = pa.array([tone.tolist() for tone in tones([4000, 2500, 1, 3000])] + [None], pa.list_(pa.float32()))
    rows = one(sounds, kind="audio", rate=8000)
    preparer = learn(rows, "spectra")
    column, batch = preparer.schema["x"], preparer.prepare(rows)
    assert column.grid == (33, 64) and column.side == 1
    frames = batch.mask()[:, :-1].reshape(-1, 33, 64).all(2).sum(1)
    assert frames.tolist() == [33, 21, 2, 25, 0]
    restored = back(preparer, batch).to_pylist()
    assert [len(sound) for sound in restored[:4]] == [4000, 2500, 1, 3000]
    for row in range(4):  # to the last bit, whatever longer sounds are beside it
        alone = preparer.prepare(rows.slice(row, 1))
        assert torch.equal(alone.numbers, batch[row : row + 1].numbers)
        assert back(preparer, alone).to_pylist() == restored[row : row + 1]


# texts


def with_holes(texts: st.SearchStrategy[str]) -> st.SearchStrategy[list[str | None]]:
    return st.lists(st.none() | texts, min_size=1, max_size=30).filter(any)


@settings(max_examples=60, deadline=None)
@given(with_holes(st.text(LETTERS, max_size=20)), st.sampled_from(["chars", "bytes", "words"]))
def test_texts_come_back(texts: list[str | None], word: str) -> None:
    rows = one(pa.array(texts, pa.string()), kind="tokens")
    preparer = learn(rows, word)
    column, batch = preparer.schema["x"], preparer.prepare(rows)
    levels, (length,) = column.levels, column.grid
    assert column.kind == "tokens" and column.width == 0 and column.holes
    assert back(preparer, batch).to_pylist() == texts
    mask = batch.mask()
    for text, codes, seen in zip(texts, batch.codes, mask, strict=True):
        tokens = int(((codes < levels - 1) & seen).sum())
        assert seen.sum() == (0 if text is None else min(tokens + 1, length))
        assert (codes[~seen] == levels).all() and seen.int().diff().le(0).all()
        assert text is None or tokens == length or codes[tokens] == levels - 1
    if word == "chars":
        assert length == max(1, max(len(text or "") for text in texts))
    if word == "bytes":
        assert levels == 257 and length == max(1, max(len((text or "").encode()) for text in texts))


def test_merged_bytes_come_back_and_are_fewer() -> None:
    pytest.importorskip("tokenizers")
    rng = np.random.default_rng(0)
    vocabulary = ["the", "cat", "sat", "ünder", "日本", "mat,"]
    texts = [" ".join(rng.choice(vocabulary, rng.integers(1, 30))) for _ in range(200)] + ["", None]
    rows = one(pa.array(texts, pa.large_string()))
    preparer, again = learn(rows, "bpe"), learn(rows, "bpe")
    assert preparer.to_file()[0] == again.to_file()[0]
    batch = preparer.prepare(rows)
    assert back(preparer, batch).to_pylist() == texts
    assert preparer.schema["x"].grid[0] < 60 and 257 < preparer.schema["x"].levels < 4097
    strange = one(pa.array(["ein Löwe"]))
    assert back(preparer, preparer.prepare(strange)).to_pylist() == ["ein Löwe"]


def test_characters_stand_by_frequency() -> None:
    rows = one(pa.array(["abbccc", "c"]), kind="tokens")
    preparer = learn(rows)
    assert preparer.prepare(rows).codes.tolist() == [[2, 1, 1, 0, 0, 0], [0, 3, 4, 4, 4, 4]]


def test_long_texts_are_cut_and_unknown_characters_marked() -> None:
    preparer = learn(one(pa.array(["ab" * 400, "ba"]), kind="tokens"))
    assert preparer.schema["x"].grid == (512,)
    with pytest.warns(DataWarning, match=r"50.0% of its texts are longer than 512 tokens \(chars\): cut"):
        batch = preparer.prepare(one(pa.array(["ab" * 400, "b"])))
    assert back(preparer, batch).to_pylist() == ["ab" * 256, "b"]
    with pytest.warns(DataWarning, match="has tokens not kept in training, such as 'é'"):
        batch = preparer.prepare(one(pa.array(["abéa"])))
    assert batch.codes[0, 2] == preparer.schema["x"].levels and batch.mask()[0, :5].all()
    assert back(preparer, batch).to_pylist() == ["ab\ufffda"]
    words = learn(one(pa.array(["one two", "two"])), "words")
    with pytest.warns(DataWarning, match="such as ' three'"):
        batch = words.prepare(one(pa.array(["one three"])))
    assert back(words, batch).to_pylist() == ["one\ufffd"]


def test_texts_come_as_other_types() -> None:
    preparer = learn(one(pa.array(["12", "2"]), kind="tokens"))
    expected = preparer.prepare(one(pa.array(["12"]))).codes
    for array in (pa.array([12]), pa.array(["12"]).dictionary_encode(), pa.array(["12"], pa.string_view())):
        assert torch.equal(preparer.prepare(one(array)).codes, expected)
    assert not preparer.prepare(one(pa.nulls(2))).mask().any()
    with pytest.raises(DataError):
        preparer.prepare(one(pa.array([[1.0]])))


def test_names_in_every_row_can_be_read_as_text() -> None:
    rows = one(pa.array([f"person {i}" for i in range(1000)]))
    with pytest.warns(DataWarning, match="kind 'tokens' or 'bag' reads it as text"):
        Preparer.learn(collect(rows))
    assert learn(rows, kinds={"x": "tokens"}).schema["x"].levels == 18
    assert learn(rows, kinds={"x": "bag"}).schema["x"].width == 991  # person, and the numbers of two digits or more


# bags


def shopping(seed: int, rows: int = 40, items: int = 30) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(0.3, 1, (rows, items)))


STRING = pa.string()


def maps(counts: np.ndarray, key: pa.DataType = STRING) -> pa.Array:
    entries = [[(str(i) if key == STRING else i, n) for i, n in enumerate(row) if n] for row in counts.tolist()]
    return pa.array(entries, pa.map_(key, pa.float32()))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([pa.string(), pa.int32(), pa.int64()]))
def test_bags_are_sparse_counts_of_known_items(seed: int, key: pa.DataType) -> None:
    counts = shopping(seed)
    rows = one(maps(counts, key))
    preparer = learn(rows)
    column, batch = preparer.schema["x"], preparer.prepare(rows)
    often = (counts > 0).sum(0)
    order = sorted(np.flatnonzero(often), key=lambda item: (-often[item], str(item) if key == pa.string() else item))
    assert column.kind == "bag" and column.width == len(order) and batch.numbers.shape == (40, 0)
    np.testing.assert_array_equal(batch.sparse.dense().numpy(), counts[:, order])
    assert preparer.entries == pytest.approx(often.sum() / 40)
    half = preparer.prepare(rows.slice(7, 20))
    assert torch.equal(half.sparse.dense(), batch.sparse.dense()[7:27])


def test_numbered_items_are_all_known_and_none_lies_beyond() -> None:
    counts = shopping(0, items=12)
    counts[:, 3] = 0
    rows = one(maps(counts, pa.int32()), items=12)
    preparer = learn(rows)
    np.testing.assert_array_equal(preparer.prepare(rows).sparse.dense().numpy(), counts)
    for bad in (12, -1):
        wrong = one(pa.array([[], [(2, 1.0)], [(bad, 1.0)]], pa.map_(pa.int32(), pa.float32())), items=12)
        with pytest.raises(DataError, match=rf"'x', row 2 \(.*\): item {bad}; wanted: item numbers from 0 to 11"):
            preparer.prepare(wrong)
        with pytest.raises(DataError, match=f"item {bad}"):
            collect(wrong)


def test_odd_bags_are_read_or_refused() -> None:
    kind = pa.map_(pa.string(), pa.float32())
    rows = one(pa.array([[("a", 1.0), ("b", 2.0)], [("a", 3.0)], None, []], kind))
    preparer = learn(rows)
    batch = preparer.prepare(rows)
    assert batch.sparse.dense().tolist() == [[1, 2], [3, 0], [0, 0], [0, 0]] and batch.seen is None
    with pytest.warns(DataWarning, match="has 2 entries of items not kept in training: dropped"):
        odd = preparer.prepare(one(pa.array([[("a", 1.0), ("z", 2.0), ("a", 4.0), ("b", 0.0)], [("y", 1.0)]], kind)))
    assert odd.sparse.dense().tolist() == [[5, 0], [0, 0]] and len(odd.sparse.values) == 1
    assert preparer.prepare(one(pa.nulls(2))).sparse.dense().tolist() == [[0, 0]] * 2
    for value in (-1.0, float("nan"), float("inf"), None):
        with pytest.raises(DataError, match=r"'x', row 1 \(.*\): a value of"):
            preparer.prepare(one(pa.array([[], [("a", value)]], kind)))
    with pytest.raises(DataError, match="'x' came as int64"):
        preparer.prepare(one(pa.array([1])))
    numbers = learn(one(pa.array([[(1, 1.0)], [(2, 1.0)]], pa.map_(pa.int64(), pa.float32()))))
    with pytest.raises(DataError, match=r"'x': .*'a'"):
        numbers.prepare(rows)


DOCUMENTS = [
    "The cat sat on the mat; the CAT purred.",
    "A dog chased the cat.",
    "Übermut tut selten gut, sagt die Katze.",
    "dog dog dog",
    "Nothing here but words, words, words and more words!",
]


@pytest.mark.parametrize("transform", ["counts", "tfidf"])
def test_words_are_counted_and_weighed_as_scikit_learn_does(transform: str) -> None:
    texts = [DOCUMENTS[i % 5] + DOCUMENTS[i % 3] for i in range(40)] + ["", None]
    rows = one(pa.array(texts))
    preparer = learn(rows, transform)
    vectorizer = CountVectorizer()
    expected = vectorizer.fit_transform([text or "" for text in texts[:-1]])
    weigh = TfidfTransformer().fit(expected)
    expected = vectorizer.transform([text or "" for text in texts])
    expected = weigh.transform(expected) if transform == "tfidf" else expected
    names = preparer.to_file()[0]["bags"]["x"]["names"]
    order = [vectorizer.vocabulary_[name] for name in names]
    assert len(order) == len(vectorizer.vocabulary_)
    dense = preparer.prepare(rows).sparse.dense().numpy()
    np.testing.assert_allclose(dense, expected.toarray()[:, order], atol=1e-6)
    assert preparer.texts == {"x"}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["counts", "tfidf"]))
def test_bags_of_the_usual_size_come_back(seed: int, transform: str) -> None:
    rng = np.random.default_rng(seed)
    counts = np.stack([np.bincount(rng.integers(0, 30, 24), minlength=30) for _ in range(40)])  # all of 24 items
    rows = one(maps(counts))
    preparer = learn(rows, transform)
    restored = back(preparer, preparer.prepare(rows))
    for row, items in zip(counts, restored.to_pylist(), strict=True):
        if transform == "counts":
            assert {int(item): count for item, count in items} == {i: n for i, n in enumerate(row) if n}
        else:
            np.testing.assert_allclose([dict(items)[str(i)] for i in np.flatnonzero(row)], row[row > 0], rtol=1e-4)


def test_where_no_item_is_likely_the_ten_likeliest_come_back() -> None:
    rows = one(maps(np.eye(40, dtype=int) * 2))
    preparer = learn(rows)
    shares = torch.linspace(1, 2, 40)[None].repeat(2, 1)
    restored = preparer.restore(shares / shares.sum(1, keepdim=True), torch.zeros(2, 0)).column(0).to_pylist()
    assert [len(items) for items in restored] == [10, 10] and all(count < 0.5 for _, count in restored[0])
    assert preparer.restore(torch.zeros(1, 40), torch.zeros(1, 0)).column(0).to_pylist() == [[]]


def test_items_that_are_there_or_not_do_not_come_back_twice() -> None:
    bought = (shopping(3) > 0).astype(int)
    bought[0] = [1, *[0] * 29]
    preparer = learn(one(maps(bought)))
    restored = back(preparer, preparer.prepare(one(maps(bought)))).to_pylist()
    assert restored[0] == [("0", 1.0)] and all(count == 1 for items in restored for _, count in items)


def test_ratings_are_not_rounded() -> None:
    rows = one(pa.array([[("a", 3.5), ("b", 1.5)]] * 4, pa.map_(pa.string(), pa.float32())))
    preparer = learn(rows)
    assert back(preparer, preparer.prepare(rows)).to_pylist()[0] == [
        ("a", pytest.approx(3.5)),
        ("b", pytest.approx(1.5)),
    ]


# all kinds beside each other


def rich(rows: int = 60) -> pa.RecordBatch:
    rng = np.random.default_rng(0)
    sounds = pa.FixedShapeTensorArray.from_numpy_ndarray(rng.normal(0, 0.1, (rows, 64)).astype(np.float32))
    images = pa.FixedShapeTensorArray.from_numpy_ndarray(rng.integers(0, 9, (rows, 3, 3)).astype(np.uint8))
    texts = pa.array(["".join(rng.choice(list("abcd "), 9)) for _ in range(rows)])
    columns = {
        "bag": (maps(shopping(0, rows)), {}),
        "n": (pa.array(rng.normal(size=rows)), {}),
        "text": (texts, {"kind": "tokens"}),
        "sound": (sounds, {"kind": "audio", "rate": 1000}),
        "level": (pa.array(rng.choice(["u", "v", "w"], rows)), {}),
        "series": (lists(0, rows), {}),
        "image": (images, {}),
        "count": (pa.array(rng.poisson(3, rows)), {}),
        "numbered": (maps(shopping(1, rows, 5), pa.int32()), {"items": 5}),
        "path": (texts, {"aside": True}),
    }
    schema = pa.schema([field(name, array.type, **facts) for name, (array, facts) in columns.items()])
    return pa.RecordBatch.from_arrays([array for array, _ in columns.values()], schema=schema)


WORDS = {"sound": "spectra", "series": "own", "bag": "tfidf"}


def all_kinds() -> tuple[pa.RecordBatch, Preparer]:
    rows = rich()
    return rows, Preparer.learn(collect(rows), kinds={"count": "count"}, transforms=WORDS)


def test_cells_stand_where_the_schema_says() -> None:
    rows, preparer = all_kinds()
    batch, schema = preparer.prepare(rows), preparer.schema
    assert batch.numbers.shape[1] == schema.dense and batch.codes.shape[1] == len(schema.levels)
    assert batch.sparse.width == schema.numbers - schema.dense
    whole = batch.dense()
    assert whole.numbers.shape[1] == schema.numbers and whole.mask().shape[1] == schema.cells
    for name in schema.names:
        alone = rows.select([name])
        kinds = {"count": "count"} if name == "count" else {}
        words = {name: WORDS[name]} if name in WORDS else {}
        single = Preparer.learn(collect(alone), kinds=kinds, transforms=words)
        cells, span = single.prepare(alone).dense(), schema.spans[name]
        shift = span.start - schema.numbers
        mine = (
            whole.codes[:, shift : shift + schema[name].cells] if schema[name].categorical else whole.numbers[:, span]
        )
        assert torch.equal(mine, cells.codes if schema[name].categorical else cells.numbers), name
        assert torch.equal(whole.mask()[:, span], cells.mask()), name
    restored = preparer.restore(whole.numbers, whole.codes)
    assert restored.schema.names == schema.names and restored.schema.equals(preparer.arrow_schema, check_metadata=True)
    assert restored.column("image").equals(rows.column("image")) and restored.column("count").equals(
        rows.column("count")
    )
    assert restored.column("text").equals(rows.column("text")) and restored.column("level").equals(rows.column("level"))


def test_a_stored_preparer_of_all_kinds_prepares_identically() -> None:
    rows, preparer = all_kinds()
    again = stored(preparer)
    one, two = preparer.prepare(rows).dense(), again.prepare(rows).dense()
    assert torch.equal(one.numbers, two.numbers) and torch.equal(one.codes, two.codes)
    assert torch.equal(one.mask(), two.mask()) and again.schema == preparer.schema
    assert again.arrow_schema.equals(preparer.arrow_schema, check_metadata=True)
    empty = again.prepare(rows.slice(0, 0))
    assert len(empty) == 0 and len(again.restore(empty.dense().numbers, empty.codes)) == 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_any_cells_of_all_kinds_restore_to_rows(seed: int) -> None:
    _, preparer = all_kinds()
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(3, preparer.schema.numbers, generator=generator) * 10.0 ** (seed % 6)
    codes = torch.randint(-1, 9, (3, len(preparer.schema.levels)), generator=generator)
    restored = preparer.restore(numbers, codes)
    restored.validate(full=True)
    assert restored.schema == preparer.arrow_schema


def test_columns_without_values_come_back_empty() -> None:
    types = [
        pa.list_(pa.float32()),
        pa.map_(pa.string(), pa.float32()),
        pa.string(),
        pa.fixed_shape_tensor(pa.int8(), [3]),
    ]
    arrays = [pa.nulls(3, arrow) for arrow in types[:3]]
    arrays.append(pa.ExtensionArray.from_storage(types[3], pa.nulls(3, types[3].storage_type)))
    kinds = ["series", "bag", "tokens", "audio"]
    schema = pa.schema([field(kind, arrow, kind=kind) for kind, arrow in zip(kinds, types, strict=True)])
    rows = pa.RecordBatch.from_arrays(arrays, schema=schema)
    preparer = learn(rows)
    assert preparer.schema.cells == 0
    batch = preparer.prepare(rows)
    restored = preparer.restore(batch.numbers, batch.codes)
    assert all(column.null_count == 3 for column in restored.columns) and restored.schema == schema


@pytest.mark.parametrize(
    "arrow",
    [
        pa.list_(pa.field("element", pa.float32())),
        pa.large_list(pa.list_(pa.field("y", pa.int16()), 3)),
        pa.list_(pa.bool_()),
        pa.map_(pa.int32(), pa.field("entries", pa.float64()).type),
        pa.map_(pa.string(), pa.float32(), keys_sorted=True),
        pa.float64(),
    ],
)
def test_types_are_read_back_from_their_names(arrow: pa.DataType) -> None:
    assert parse_type(str(canonical(arrow))) == canonical(arrow)


def mutated(value: Any, rng: random.Random) -> Any:
    """The JSON value with one spot changed, dropped or of another type."""
    if isinstance(value, dict) and value and rng.random() < 0.95:
        key = rng.choice(sorted(value))
        return {k: mutated(v, rng) if k == key else v for k, v in value.items() if k != key or rng.random() < 0.8}
    if isinstance(value, (list, tuple)) and value and rng.random() < 0.95:
        at = rng.randrange(len(value))
        return [mutated(v, rng) if i == at else v for i, v in enumerate(value) if i != at or rng.random() < 0.8]
    junk = [None, -1, 0, 1, 2, 7, 2**70, 1.5, 1e300, "", "a", "int64", "map<string, int8>", "list<item: double>", True]
    return rng.choice([*junk, [], {}, [3, 2**40], [1, 1], "tokens", "bag", "series", "own", "bpe", "spectra", "chars"])


def test_mutated_facts_of_all_kinds_are_refused_or_work() -> None:
    rows, preparer = all_kinds()
    facts, tensors = preparer.to_file()
    facts, refused = json.loads(json.dumps(facts)), 0
    for seed in range(400):
        changed = mutated(copy.deepcopy(facts), random.Random(seed))
        try:
            loaded = Preparer.from_file(changed if isinstance(changed, dict) else {"columns": changed}, tensors)
        except ModelFileError:
            refused += 1
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            loaded.restore(torch.zeros(2, loaded.schema.numbers), torch.zeros(2, len(loaded.schema.levels)).long())
            with contextlib.suppress(DataError):
                loaded.prepare(rows)
    assert 150 < refused < 400


def test_series_with_other_channels_and_sounds_of_another_rate_are_refused():
    def table(names, rate):
        series = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(60.0).reshape(5, 6, 2))
        sound = pa.FixedShapeTensorArray.from_numpy_ndarray(np.linspace(-1, 1, 40, dtype=np.float32).reshape(5, 8, 1))
        fields = [
            field("x", series.type, kind="series", channels=names),
            field("sound", sound.type, kind="audio", rate=rate),
        ]
        return pa.RecordBatch.from_arrays([series, sound], schema=pa.schema(fields))

    statistics = Statistics(table(("up", "down"), 8000).schema)
    statistics.update(table(("up", "down"), 8000), 0)
    preparer = Preparer.learn(statistics)
    preparer.prepare(table(("up", "down"), 8000))
    preparer.prepare(table((), 0))  # arrays do not say
    with pytest.raises(DataError, match=r"'x' with channels .*down.*up.*as in training"):
        preparer.prepare(table(("down", "up"), 8000))
    with pytest.raises(DataError, match="samples per second: 44100"):
        preparer.prepare(table(("up", "down"), 44100))
