"""The hostile, unlucky user: bad data, bad settings, bad files, bad luck, through the command line and from Python.

Each case ends in a right answer or in one sentence that names what is wrong; nothing half-written is left behind.
"""

import contextlib
import datetime
import decimal
import json
import os
import re
import resource
import signal
import threading
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from command import narrows
from narrows import DataError, Plan, SettingError, Training, TrainingError, evaluate, fit, load
from narrows.errors import DataWarning, FitWarning
from narrows.sources.arrays import ArraySource

ROWS = 120
draw = np.random.default_rng(0)
FRAME = pd.DataFrame(
    {
        "size": draw.normal(10, 3, ROWS).round(3),
        "rooms": draw.integers(1, 9, ROWS),
        "town": draw.choice(["Bern", "Ulm", "Nice"], ROWS),
        "sold": draw.choice([True, False], ROWS),
        "seen": pd.date_range("2025-01-01", periods=ROWS, freq="h").strftime("%Y-%m-%d %H:%M:%S"),
        "mixed": draw.choice(["True", "unknown", "1.50"], ROWS),
    }
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a table, a model of it and its codes."""
    folder = tmp_path_factory.mktemp("bad")
    FRAME.to_csv(folder / "homes.csv", index=False)
    narrows("fit", "homes.csv", "--latent", 3, "--hidden", 8, "--epochs", 2, "--out", "m.narrows", cwd=folder)
    narrows("encode", "m.narrows", "homes.csv", "--out", "codes.csv", cwd=folder)
    return folder


@contextlib.contextmanager
def nothing_new(folder, *allowed):
    """Checks that the body leaves no file behind but those allowed."""
    before = {path.name for path in folder.iterdir()}
    yield
    assert {path.name for path in folder.iterdir()} - before <= set(allowed)


def lines(*rows):
    return "".join(f"{row}\n" for row in rows)


# data to train on that says nothing, or what it should not

UNFIT = {
    "empty": ("", "bad.csv is empty"),
    "header only": ("a,b\n", "header and no rows"),
    "blank lines": ("\n\n\n", "no rows"),
    "ragged": ("a,b\n1,2\n3,4,5\n", "row 2 has 3 fields"),
    "doubled names": ("a,a\n1,2\n3,4\n", "more than one column named 'a'"),
    "infinite": (lines("a,b", *[f"{i},{i}" for i in range(50)], "inf,3"), "column 'a', row 50 (the first is row 0)"),
    "open quote": (lines("a,b", "1,x", '2,"y', "3,z"), "opens a quote that is never closed"),
    "all missing": (lines("a,b", *["NA,?"] * 30), "no column has anything to learn from"),
    "ids alone": (lines("id", *[f"id{i}" for i in range(60)]), "no column has anything to learn from"),
    "spaces": ("a b\n1 2\n3 4\n", "between spaces"),
    "bytes": ("a,b\n\0\1,2\n", "does not begin like any file that is read"),
}


@pytest.mark.parametrize(("text", "said"), UNFIT.values(), ids=UNFIT)
def test_data_that_cannot_be_learnt_from_is_refused(tmp_path, text, said):
    (tmp_path / "bad.csv").write_text(text)
    with nothing_new(tmp_path):
        assert said in narrows("fit", "bad.csv", "--out", "m.narrows", cwd=tmp_path, code=1).stderr


POOR = {
    "one row": lines("a,b", "1,2"),
    "two rows": lines("a,b", "1,2", "3,4"),
    "one column": lines("a", *[i * 1.5 for i in range(60)]),
    "constant": lines("a,b,c", *[f"7,{i},x" for i in range(60)]),
    "all the same": lines("a,b,c", *["1,x,2.5"] * 60),
    "missing column": lines("a,b,c", *[f",{i},NA" for i in range(60)]),
    "texts alone": lines("a,b", *["u,v", "w,x", "u,x"] * 20),
    "ids": lines("a,b", *[f"id{i},{i}" for i in range(60)]),
    "tiny and huge": lines("a,b", *[f"{i}e300,{i}e-300" for i in range(60)]),
}


@pytest.mark.parametrize("name", POOR)
def test_poor_data_goes_all_the_way(tmp_path, name):
    (tmp_path / "poor.csv").write_text(POOR[name])
    narrows("fit", "poor.csv", "--epochs", 2, "--out", "m.narrows", cwd=tmp_path)
    narrows("encode", "m.narrows", "poor.csv", "--out", "codes.npy", cwd=tmp_path)
    narrows("decode", "m.narrows", "codes.npy", "--out", "rows.csv", cwd=tmp_path)
    narrows("reconstruct", "m.narrows", "poor.csv", "--out", "back.csv", cwd=tmp_path)
    figures = json.loads(narrows("evaluate", "m.narrows", "poor.csv", "--json", cwd=tmp_path).stdout)
    narrows("report", "m.narrows", "poor.csv", "--out", "page.html", cwd=tmp_path)
    assert not re.search(r"\b(nan|inf)\b", (tmp_path / "page.html").read_text())
    assert np.isfinite(np.load(tmp_path / "codes.npy")).all()
    data, back = pd.read_csv(tmp_path / "poor.csv"), pd.read_csv(tmp_path / "back.csv")
    assert list(back) == list(data) and len(back) == len(data) == figures["rows"]
    for column in data:
        empty = data[column].isna().all() or (name, column) == ("ids", "a")
        assert back[column].isna().all() if empty else back[column].notna().all()
        if data[column].nunique() == 1:
            assert (back[column] == data[column]).all()


def test_a_table_of_thousands_of_columns_goes_all_the_way(tmp_path):
    frame = pd.DataFrame(draw.normal(size=(30, 1500))).add_prefix("n")
    texts = pd.DataFrame(draw.choice(["a", "b"], size=(30, 500))).add_prefix("t")
    frame = pd.concat([frame, texts, pd.DataFrame({"many": [f"{i % 15}" for i in range(30)]})], axis=1)
    model = fit(frame, Plan(epochs=1))
    assert model.reconstruct(frame).num_columns == 2001 and np.isfinite(model.encode(frame)).all()
    with pytest.warns(FitWarning):
        assert len(evaluate(model, frame).columns) == 2001


# rows that are not like those of training

UNLIKE = {
    "text for a number": (FRAME.assign(size="big"), "column 'size', row 0 (the first is row 0): 'big'"),
    "late text": (FRAME.assign(size=[*FRAME["size"][:-1], "x"]), "row 119"),
    "number for a date": (FRAME.assign(seen=7), "column 'seen' came as int64"),
    "text for a date": (FRAME.assign(seen="soon"), "'soon'; wanted: dates"),
    "date for a number": (FRAME.assign(rooms=FRAME["seen"]), "column 'rooms' came as timestamp"),
    "text for a flag": (FRAME.assign(sold="yes"), "wanted: values like False, True"),
    "missing columns": (FRAME.drop(columns=["rooms", "town"]), "no column 'rooms', 'town'"),
    "other name": (FRAME.rename(columns={"town": "Town"}), "no column 'town'"),
    "infinite": (FRAME.assign(size=np.inf), "an infinite value; wanted: finite numbers"),
    "no rows": (FRAME[:0], "no rows"),
}


@pytest.mark.parametrize(("frame", "said"), UNLIKE.values(), ids=UNLIKE)
def test_rows_that_do_not_fit_a_model_are_told(place, frame, said):
    frame.to_csv(place / "unlike.csv", index=False)
    with nothing_new(place):
        error = narrows("encode", "m.narrows", "unlike.csv", "--out", "out.csv", cwd=place, code=1).stderr
    assert "unlike.csv" in error and said in error and len(error.splitlines()) == 1


STRANGE = {
    "numbers for texts": (FRAME.assign(town=7), "'town' has levels not kept in training, such as '7'"),
    "far": (FRAME.assign(size=-500.0), "far outside its training range of"),
    "further": (FRAME.assign(size=1e300), "that they are taken for"),
    "int64": (FRAME.assign(rooms=2**63 - 1), "that they are taken for"),
    "1812": (FRAME.assign(seen="1812-03-04 05:06:07"), "'seen' has dates far outside"),
    "9999": (FRAME.assign(seen="9999-12-31"), "'seen' has dates far outside"),
    "extra columns": (FRAME.assign(more=1, extra="x"), "columns not seen in training are ignored: 'more', 'extra'"),
    "other order": (FRAME[FRAME.columns[::-1]], ""),
    "all missing": (FRAME.assign(**dict.fromkeys(FRAME, np.nan)), ""),
    "floats for integers": (FRAME.assign(rooms=FRAME["rooms"] + 0.5), ""),
}


@pytest.mark.parametrize(("frame", "said"), STRANGE.values(), ids=STRANGE)
def test_strange_rows_are_answered_and_warned_of(place, frame, said):
    frame.to_csv(place / "strange.csv", index=False)
    done = narrows("encode", "m.narrows", "strange.csv", "--out", "strange.npy", cwd=place)
    assert said in done.stderr and bool(done.stderr) == bool(said)
    assert np.isfinite(np.load(place / "strange.npy")).all()
    narrows("reconstruct", "m.narrows", "strange.csv", "--out", "back.csv", cwd=place)
    assert pd.read_csv(place / "back.csv").notna().all().all()
    assert "NaN" not in narrows("evaluate", "m.narrows", "strange.csv", "--json", cwd=place).stdout


def test_a_file_of_one_row_is_read_as_the_training_rows_were(place):
    """`True` and `1.50` were texts in training; alone in a file they look like a flag and a number."""
    whole = pd.read_csv(place / "codes.csv").to_numpy()
    for text in ("True", "1.50"):
        row = int(FRAME.index[FRAME["mixed"] == text][0])
        FRAME[row : row + 1].to_csv(place / "row.csv", index=False)
        done = narrows("encode", "m.narrows", "row.csv", "--out", "row.npy", cwd=place)
        assert not done.stderr
        np.testing.assert_allclose(np.load(place / "row.npy")[0], whole[row], rtol=1e-5, atol=1e-6)


def test_a_file_without_a_header_is_read_so_again(tmp_path):
    (tmp_path / "texts.csv").write_text(lines(*["u,v", "w,x", "u,x"] * 20))
    (tmp_path / "new.csv").write_text(lines("w,v", "u,x"))
    narrows("fit", "texts.csv", "--no-header", "--epochs", 1, "--out", "m.narrows", cwd=tmp_path)
    narrows("encode", "m.narrows", "new.csv", "--no-header", "--out", "z.npy", cwd=tmp_path)
    assert len(np.load(tmp_path / "z.npy")) == 2


CODES = {
    "more": (lambda z: z.assign(z3=1), r"shape \(120, 4\)"),
    "fewer": (lambda z: z[["z0"]], r"shape \(120, 1\)"),
    "missing": (lambda z: z.assign(z1=[np.nan, *z["z1"][1:]]), "codes with NaN.* row 0"),
    "infinite": (lambda z: z.assign(z0=np.inf), "codes with NaN, infinity"),
    "huge": (lambda z: z.assign(z0=1e300), "beyond float32"),
    "texts": (lambda z: z.assign(z0="x"), "codes.*'z0' of type string among codes|'z0' of type string among codes"),
}


@pytest.mark.parametrize(("change", "said"), CODES.values(), ids=CODES)
def test_codes_that_are_none_are_refused(place, change, said):
    change(pd.read_csv(place / "codes.csv")).to_csv(place / "wrong.csv", index=False)
    with nothing_new(place):
        error = narrows("decode", "m.narrows", "wrong.csv", "--out", "out.csv", cwd=place, code=1).stderr
    assert re.search(said, error) and "wrong.csv" in error and "RuntimeWarning" not in error


def test_codes_are_told_by_their_names(place):
    pd.read_csv(place / "codes.csv")[["z2", "z0", "z1"]].to_csv(place / "turned.csv", index=False)
    narrows("decode", "m.narrows", "codes.csv", "--out", "rows.csv", cwd=place)
    narrows("decode", "m.narrows", "turned.csv", "--out", "turned_rows.csv", cwd=place)
    assert (place / "rows.csv").read_bytes() == (place / "turned_rows.csv").read_bytes()


# settings, weights, validation

SETTINGS = [
    (("--epochs", 0), "epochs=0"),
    (("--latent", 0), "latent=0"),
    (("--latent", 10**30), "latent="),
    (("--hidden", -1), "hidden="),
    (("--hidden", 10**30), "hidden="),
    (("--members", 0), "members=0"),
    (("--batch-size", 0), "batch_size=0"),
    (("--lr", "nan"), "lr=nan"),
    (("--seed", 2**70), "seed="),
    (("--device", "gpu"), "device 'gpu'; wanted: auto, cpu"),
    (("--dropout", 1), "dropout=1"),
    (("--recipe", "vae:beta=inf"), "vae:beta=inf"),
    (("--recipe", "vae:gamma=1"), "no argument 'gamma'"),
    (("--validation", 1), "validation=1"),
    (("--validation", 0.999), "leaves none to train on"),
    (("--validation", "none.csv"), "no such file: none.csv"),
    (("--group", "planet"), "planet"),
    (("--time", "town"), "time column 'town' is string"),
    (("--group", "town", "--time", "seen"), "one of them"),
    (("--column.size", "image"), "cannot be of kind 'image'"),
    (("--column.town", "minmax"), "no transform 'minmax'"),
    (("--budget", 0, "--optimizer", "gd"), "all rows in memory"),
    (("--out", ""), "a name that ends in .narrows"),
    (("--lr", 1e30), "a lower lr"),
]


@pytest.mark.parametrize(("words", "said"), SETTINGS, ids=[" ".join(map(str, words)) for words, _ in SETTINGS])
def test_settings_that_cannot_be_are_named(place, words, said):
    defaults = {"--out": "x.narrows", "--epochs": 1}
    base = ["fit", "homes.csv", *(word for pair in defaults.items() if pair[0] not in words for word in pair)]
    with nothing_new(place, "x.run"):
        error = narrows(*base, *words, cwd=place, code=1).stderr
    assert said in error.splitlines()[-1]


@pytest.mark.parametrize(
    "words",
    [
        ("--latent", 500),
        ("--batch-size", 100_000),
        ("--members", 3),
        ("--budget", 0),
        ("--budget", 0, "--members", 2, "--recipe", "vae"),
        ("--seed", -5),
        ("--time-limit", 0.001),
        ("--group", "size"),
        ("--time", "rooms"),
        ("--validation", 0.9),
        ("--validation", 0.0001),
    ],
    ids=str,
)
def test_odd_settings_work(place, words):
    words = ("fit", "homes.csv", "--epochs", 1, "--hidden", 8, *words, "--out", "odd.narrows")
    done = narrows(*words, cwd=place)
    assert np.isfinite(load(place / "odd.narrows").encode(place / "homes.csv")).all()
    assert ("none to validate on" in done.stderr) == (0.0001 in words)


NUMBERS = draw.normal(size=(ROWS, 3))
WEIGHTS = {
    "zero": (np.zeros(ROWS), "0 for all training rows"),
    "negative": (-np.ones(ROWS), "negative, missing or infinite"),
    "missing": (np.full(ROWS, np.nan), "negative, missing or infinite"),
    "infinite": (np.full(ROWS, np.inf), "negative, missing or infinite"),
    "short": (np.ones(ROWS - 1), "wanted: (120,), one for each row"),
    "square": (np.ones((ROWS, 1)), "wanted: (120,), one for each row"),
    "texts": (["a"] * ROWS, "no numbers"),
}


@pytest.mark.parametrize(("weight", "said"), WEIGHTS.values(), ids=WEIGHTS)
def test_weights_that_weigh_nothing_are_refused(weight, said):
    with pytest.raises(SettingError, match=re.escape(said)):
        fit(NUMBERS, Plan(epochs=1), weight=weight)


def test_weights_of_any_size_and_few_rows_that_count_train():
    for weight in (np.full(ROWS, 1e30), np.full(ROWS, 1e-30), np.r_[np.ones(3), np.zeros(ROWS - 3)]):
        training = Training(batch_size=8, validation=0)
        assert np.isfinite(fit(NUMBERS, Plan(epochs=2, training=training), weight=weight).encode(NUMBERS)).all()


PLANS = [{"latent": 2.5}, {"latent": "3"}, {"epochs": 2.0}, {"seed": 1.5}, {"lr": "x"}, {"recipe": None}]


@pytest.mark.parametrize("settings", PLANS, ids=str)
def test_settings_of_another_type_are_named(settings):
    with pytest.raises(SettingError, match=next(iter(settings))):
        fit(NUMBERS, Plan(**settings))


def test_validation_rows_must_be_like_the_training_rows():
    frame = pd.DataFrame(NUMBERS, columns=list("abc"))
    with pytest.raises(DataError, match="no column 'c'"):
        fit(frame, Plan(epochs=1), validation=frame.rename(columns={"c": "d"}))
    with pytest.raises(DataError, match=r"shape \(2,\); wanted: shape \(3,\)"):
        fit(NUMBERS, Plan(epochs=1), validation=NUMBERS[:, :2])
    with pytest.raises(DataError, match="no rows to validate on"):
        fit(NUMBERS, Plan(epochs=1), validation=NUMBERS[:0])


# values at the edges of their types

ones = NUMBERS[:, 0]
far_dates = [-(2**31) + 1, 0, 2**31 - 1] * 40
EDGES = {
    "1e300": NUMBERS * 1e300,
    "1.7e308": np.sign(NUMBERS) * 1.7e308,
    "1e-300": NUMBERS * 1e-300,
    "denormal": NUMBERS * 1e-310,
    "mixed": NUMBERS * np.array([1e300, 1, 1e-300]),
    "one far out": np.r_[NUMBERS, [[1e300, 0, 0]]],
    "float32": (np.sign(NUMBERS) * 3.4e38).astype(np.float32),
    "float16": (NUMBERS * 60_000).clip(-65_504, 65_504).astype(np.float16),
    "int64": draw.choice([-(2**63), 2**63 - 1, 0, 7], (ROWS, 3)),
    "uint64": pd.DataFrame({"a": draw.integers(0, 2**64, ROWS, dtype=np.uint64), "b": ones}),
    "flags": pd.DataFrame({"a": NUMBERS[:, 1] > 0, "b": True}),
    "decimals": pa.table({"d": pa.array([decimal.Decimal(10) ** 30 + i for i in range(ROWS)], pa.decimal128(38, 2))}),
    "years 1 and 9999": pd.DataFrame({"d": [datetime.date(1, 1, 1), datetime.date(9999, 12, 31)] * 60, "x": ones}),
    "days": pa.table({"d": pa.array(far_dates, pa.date32()), "x": ones}),
    "moments": pa.table({"d": pa.array([x << 30 for x in far_dates], pa.timestamp("us", "Asia/Tokyo")), "x": ones}),
    "no dates": pa.table({"d": pa.nulls(ROWS, pa.timestamp("ns", "UTC")), "x": ones}),
    "black images": np.zeros((30, 4, 4), np.uint8),
    "nan cells": np.where([True, False, False], np.nan, NUMBERS),
    "bfloat16": torch.randn(50, 3).bfloat16(),
}


@pytest.mark.filterwarnings("ignore::narrows.errors.FitWarning")
@pytest.mark.parametrize("data", EDGES.values(), ids=EDGES)
def test_extreme_values_give_finite_answers(tmp_path, data):
    model = fit(data, Plan(epochs=2, latent=1))
    assert np.isfinite(model.encode(data)).all() and np.isfinite(model.score(data)).all()
    back = model.reconstruct(data)
    back.validate(full=True)
    for column in back.columns:
        values = column.combine_chunks()
        values = values.storage.flatten() if isinstance(column.type, pa.FixedShapeTensorType) else values
        if pa.types.is_floating(values.type):
            assert np.isfinite(values.to_numpy(zero_copy_only=False)).all()
    result = evaluate(model, data)
    seen = [c.errors.model for c in result.columns if c.seen]
    assert np.isfinite(seen).all() and np.isfinite([result.total.model, *result.loss.values()]).all()
    model.save(tmp_path / "m.narrows")
    np.testing.assert_array_equal(load(tmp_path / "m.narrows").encode(data), model.encode(data))


@pytest.mark.filterwarnings("ignore::narrows.errors.FitWarning")
def test_errors_of_huge_and_tiny_columns_are_those_of_plain_ones():
    errors = []
    for factor in (1.0, 1e300, 1e-300):
        data = NUMBERS * factor
        column = evaluate(fit(data, Plan(epochs=1)), data).columns[0]
        assert 0 < column.errors.model / factor < 100 and abs(column.r2) < 100
        errors.append(column.errors.mean / factor)
    np.testing.assert_allclose(errors, errors[0], rtol=1e-6)


def test_objects_that_are_no_table_are_told():
    for data in ([[1, 2]], {"a": [1]}, None, 7):
        with pytest.raises(DataError, match="wanted: an array or tensor"):
            fit(data)
    with pytest.raises(DataError, match="real and imaginary parts"):
        fit(NUMBERS + 1j)
    with pytest.raises(DataError, match="column 'd' is of type list"):
        fit(pa.table({"d": [["a", "b"]]}))
    with pytest.raises(DataError, match="'x0' mixes kinds of values"):
        fit(np.array([["a", 1], [2, "b"]], object))
    with pytest.raises(DataError, match="more than one column named 'a'"):
        fit(pd.DataFrame(NUMBERS, columns=["a", "a", "b"]))


# files, disks and luck

DAMAGED = {
    "cut short": (lambda b: b[: len(b) // 2], "cut short, damaged"),
    "a byte off": (lambda b: b[:-40] + bytes([b[-40] ^ 255]) + b[-39:], "does not match|do not match its checksum"),
    "foreign": (lambda b: b"PK\x03\x04" + b"0" * 500, "no model file"),
    "newer": (lambda b: re.sub(rb"format..:\d+", lambda m: m[0][:-1] + b"9", b), "a newer version of narrows"),
    "empty": (lambda b: b"", "no model file"),
}


@pytest.mark.parametrize(("change", "said"), DAMAGED.values(), ids=DAMAGED)
def test_files_that_are_no_models_are_refused(place, change, said):
    (place / "damaged.narrows").write_bytes(change((place / "m.narrows").read_bytes()))
    assert re.search(said, narrows("info", "damaged.narrows", cwd=place, code=1).stderr)


@contextlib.contextmanager
def little_room(size):
    """No file can grow beyond `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("words", ["encode csv", "encode npy", "encode parquet", "encode jsonl", "report html"])
def test_a_full_disk_leaves_nothing_half_written(place, words):
    verb, suffix = words.split()
    (place / f"full.{suffix}").write_text("as it was")
    with nothing_new(place), little_room(300):
        error = narrows(verb, "m.narrows", "homes.csv", "--out", f"full.{suffix}", cwd=place, code=1).stderr
    assert f"no space left writing full.{suffix}; try: freeing space" in error
    assert (place / f"full.{suffix}").read_text() == "as it was"


def test_training_is_not_lost_on_a_full_disk(place):
    fit_ = ("fit", "homes.csv", "--latent", 3, "--hidden", 300, "--epochs", 2, "--out", "full.narrows")
    with nothing_new(place, "full.run"), little_room(4000):
        error = narrows(*fit_, cwd=place, code=1).stderr
    assert "checkpoint" in error and "training goes on without" in error
    assert "no space left writing full.narrows" in error.splitlines()[-1]


OUTS = {"no/x": "no such folder", "folder": "it is a folder", "homes.csv/x": "part of the path is a file"}
VERBS = [("fit", ".narrows"), ("encode", ".csv"), ("reconstruct", ".csv"), ("report", ".html")]


@pytest.mark.parametrize(("out", "said"), OUTS.items(), ids=OUTS)
@pytest.mark.parametrize(("verb", "suffix"), VERBS)
def test_places_that_cannot_be_written_to_are_told_before_the_work(place, verb, suffix, out, said):
    out = f"{out}{suffix}"
    (place / f"folder{suffix}").mkdir(exist_ok=True)
    with nothing_new(place):
        read = ("none.csv",) if verb == "fit" else ("none.narrows", "none.csv")
        error = narrows(verb, *read, "--out", out, cwd=place, code=1).stderr
    assert error.startswith(f"narrows: cannot write {out}: {said}")


def test_a_run_goes_on_only_with_its_own_settings_and_data(tmp_path):
    FRAME.to_csv(tmp_path / "a.csv", index=False)
    run = ("--hidden", 8, "--epochs", 2, "--out", "a.narrows", "--resume")
    narrows("fit", "a.csv", *run, cwd=tmp_path)
    assert "latent=2" in narrows("fit", "a.csv", *run, "--latent", 2, cwd=tmp_path, code=1).stderr
    FRAME.assign(size=FRAME["size"] * 2).to_csv(tmp_path / "a.csv", index=False)
    assert "data_fingerprint" in narrows("fit", "a.csv", *run, cwd=tmp_path, code=1).stderr
    (tmp_path / "file.run").write_text("mine")
    words = ("fit", "a.csv", "--epochs", 1, "--out", "b.narrows", "--run", "file.run")
    assert "no run folder file.run" in narrows(*words, cwd=tmp_path, code=1).stderr
    assert (tmp_path / "file.run").read_text() == "mine"


def test_ctrl_c_in_training_keeps_the_best_model(place):
    metrics = place / "long.run" / "metrics.jsonl"

    def interrupt():
        while not metrics.exists() or not metrics.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    words = ("fit", "homes.csv", "--hidden", 8, "--epochs", 100_000, "--patience", 100_000, "--out", "long.narrows")
    done = narrows(*words, cwd=place, code=130)
    thread.join()
    assert "interrupted in epoch" in done.stderr and "stopped by: interrupted" in done.stdout
    assert load(place / "long.narrows").facts["reason"] == "interrupted"


class Interrupted(ArraySource):
    """Rows that never come to their end, since the user has lost patience."""

    def batches(self):
        yield next(super().batches())
        raise KeyboardInterrupt


def test_ctrl_c_while_reading_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(Interrupted(NUMBERS, "rows"), Plan(epochs=1))
    model = fit(NUMBERS, Plan(epochs=1))
    with pytest.raises(KeyboardInterrupt):
        model.reconstruct(Interrupted(NUMBERS, "rows"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [("evaluate", "m.narrows", "homes.csv"), ("info", "m.narrows", "--json")])
def test_a_reader_that_has_seen_enough_is_no_error(place, words):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        done = narrows(*words, cwd=place, code=1, stdout=closed)
    assert not done.stderr


def test_training_that_diverges_is_explained():
    with pytest.raises(TrainingError, match="try: a lower lr"):
        fit(NUMBERS, Plan(epochs=2, lr=1e30))


# names that are up to no good

SCRIPT = "<script>alert(1)</script>"
NAMES = ["[bold]x[/]", "[/red]", "naïve 列 🎉", "new\nline", "v" * 300, "{{jinja}}", SCRIPT, ' "q", ']


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_names_are_only_names(tmp_path, suffix, monkeypatch):
    frame = pd.DataFrame(
        {name: draw.normal(size=60) for name in NAMES[:-1]} | {NAMES[-1]: ["[red]a", "b\nc", "<b>"] * 20}
    )
    if suffix == "csv":
        frame.to_csv(tmp_path / "u.csv", index=False)
    else:
        pq.write_table(pa.Table.from_pandas(frame), tmp_path / "u.parquet")
    (tmp_path / "[bold]").mkdir()
    model = "[bold]/m[red].narrows"
    assert model in narrows("fit", f"u.{suffix}", "--epochs", 1, "--out", model, cwd=tmp_path).stdout
    for columns in ("200", "40"):
        monkeypatch.setenv("COLUMNS", columns)
        shown = narrows("evaluate", model, f"u.{suffix}", cwd=tmp_path).stdout
        assert "[bold]x[/]" in shown and "naïve 列 🎉" in shown and "\x1b" not in shown
        assert not re.search(r"\d…", shown)
    monkeypatch.setenv("COLUMNS", "80")
    assert SCRIPT in narrows("info", model, cwd=tmp_path).stdout
    narrows("report", model, f"u.{suffix}", "--out", "r.html", cwd=tmp_path)
    page = (tmp_path / "r.html").read_text()
    assert "<script>alert" not in page and "{{jinja}}" in page
    narrows("reconstruct", model, f"u.{suffix}", "--out", "back.csv", cwd=tmp_path)
    stripped = [name.strip() for name in pd.read_csv(tmp_path / "back.csv").columns]
    assert stripped == [name.strip() for name in NAMES]


def test_columns_of_names_are_left_out_aloud():
    frame = pd.DataFrame({"name": [f"person {i}" for i in range(ROWS)], "size": ones})
    with pytest.warns(DataWarning, match="'name' has another value in every row"):
        model = fit(frame, Plan(epochs=1, training=Training(validation=0), latent=1, recipe="vae"))
    assert model.reconstruct(frame)["name"].null_count == ROWS
