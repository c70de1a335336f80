"""Anomalies on the command line: fits that are told what is known, files, tables, pictures, JSON, and poor data."""

import contextlib
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from command import narrows
from narrows import detect, load

ROWS = 200
draw = np.random.default_rng(0)
AGE = draw.integers(20, 65, ROWS)
FRAME = pd.DataFrame(
    {
        "age": AGE,
        "pay": (AGE * 1000 * np.exp(draw.normal(0, 0.1, ROWS))).round(),
        "town": draw.choice(["Bern", "Oslo"], ROWS),
    }
)
FRAME.loc[30, "pay"] = 450_000.0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with people, pictures, and detectors of both."""
    folder = tmp_path_factory.mktemp("odd")
    FRAME.to_csv(folder / "people.csv", index=False)
    narrows("fit", "people.csv", "--for", "detect", "--out", "m.narrows", cwd=folder)
    (folder / "pictures").mkdir()
    for i in range(60):
        pixels = np.full((8, 6), 40, np.uint8) + draw.integers(0, 9, (8, 6), dtype=np.uint8)
        pixels[0, 0], pixels[2:4, 4] = 255, 250 if i == 7 else 60
        Image.fromarray(pixels).save(folder / "pictures" / f"p{i:02d}.png")
    words = ("--for", "detect", "--epochs", 120, "--out", "p.narrows")
    narrows("fit", "pictures", *words, cwd=folder)
    return folder


@contextlib.contextmanager
def nothing_new(folder):
    """Checks that the body leaves no file behind."""
    before = {path.name for path in folder.iterdir()}
    yield
    assert {path.name for path in folder.iterdir()} == before


def test_the_terminal_says_what_was_found(place):
    with nothing_new(place):
        done = narrows("detect", "m.narrows", "people.csv", cwd=place)
    words = " ".join(done.stdout.split())
    assert "pay 450,000 in place of" in words and "of 200 rows" in words and "scores above" in words
    assert "held-out rows" in words and not done.stderr
    assert words.index("450,000") < words.index("of 200 rows")
    assert (
        "Next: narrows detect"
        in narrows("fit", "people.csv", "--for", "detect", "--epochs", 1, "--out", "n.narrows", cwd=place).stdout
    )


def test_json_is_the_same_for_machines(place):
    found = json.loads(narrows("detect", "m.narrows", "people.csv", "--json", cwd=place).stdout)
    table = detect(load(place / "m.narrows"), place / "people.csv")
    assert (found["rows"], found["anomalies"]) == (ROWS, sum(table["anomaly"].to_pylist()))
    assert [row["row"] for row in found["worst"]] == np.argsort(-table["score"].to_numpy(), kind="stable")[:5].tolist()
    assert found["worst"][0]["row"] == 30 and found["worst"][0]["why"].startswith("pay 450,000")
    assert found["contamination"] == "auto" and found["calibrated"] == "held-out rows"
    assert 20 <= found["calibration_rows"] <= 60 and found["alarms"] is None
    assert found["network"] in ("used", "left out")


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_files_hold_a_line_for_each_row(place, suffix):
    narrows("detect", "m.narrows", "people.csv", "--explain", "--out", f"s{suffix}", cwd=place)
    read = {".parquet": pd.read_parquet, ".csv": pd.read_csv, ".jsonl": lambda path: pd.read_json(path, lines=True)}
    told = read[suffix](place / f"s{suffix}")
    wanted = detect(load(place / "m.narrows"), place / "people.csv", explain=True).to_pandas()
    assert list(told) == list(wanted) and len(told) == ROWS
    for name in ("score", "p_value", "blame.pay", "remainder"):
        np.testing.assert_allclose(told[name], wanted[name], rtol=1e-9, atol=1e-9)
    assert (told["anomaly"] == wanted["anomaly"]).all() and (told["why"].fillna("") == wanted["why"]).all()
    blamed = [name for name in told if name.startswith("blame.")]
    np.testing.assert_allclose(told[[*blamed, "remainder"]].sum(axis=1), told["score"], atol=1e-9)


def test_without_explain_a_file_is_short(place):
    narrows("detect", "m.narrows", "people.csv", "--out", "short.npy", cwd=place)
    assert np.load(place / "short.npy").shape == (ROWS, 3)
    narrows("detect", "m.narrows", "people.csv", "--out", "short.parquet", cwd=place)
    assert pq.read_schema(place / "short.parquet").names == ["score", "p_value", "anomaly"]


def test_alarms_take_the_place_of_the_threshold(place):
    words = ("detect", "m.narrows", "people.csv", "--alarms", 0.2)
    found = json.loads(narrows(*words, "--out", "a.parquet", "--json", cwd=place).stdout)
    told = pd.read_parquet(place / "a.parquet")
    assert (told["anomaly"] == (told["p_value"] <= 0.2)).all() and found["alarms"] == 0.2
    assert "at most 0.2 of normal rows" in narrows(*words, cwd=place).stdout.replace("\n", " ")


def test_what_is_known_of_anomalies_is_told_to_the_fit(place):
    words = ("fit", "people.csv", "--for", "detect", "--epochs", 2, "--out", "c.narrows")
    narrows(*words, "--contamination", 0.1, "--all-normal", cwd=place)
    found = json.loads(narrows("detect", "c.narrows", "people.csv", "--json", cwd=place).stdout)
    assert found["contamination"] == 0.1 and 18 <= found["anomalies"] <= 22
    assert "which 0.1 of the training rows reach" in narrows("detect", "c.narrows", "people.csv", cwd=place).stdout
    assert load(place / "c.narrows").parts["detect"].facts["share"] == 1.0


def test_pictures_lie_beside_their_heat(place):
    found = json.loads(narrows("detect", "p.narrows", "pictures", "--out", "heat", "--json", cwd=place).stdout)
    assert found["worst"][0]["path"].endswith("p07.png") and "around row" in found["worst"][0]["why"]
    assert sorted(path.name for path in (place / "heat").iterdir()) == [f"p{i:02d}.png" for i in range(60)]
    odd = np.asarray(Image.open(place / "heat" / "p07.png")).astype(int)
    assert odd.shape == (8, 12, 3)
    before = np.asarray(Image.open(place / "pictures" / "p07.png")).astype(int)
    assert (abs(odd[:, :6] - before[..., None]) <= 1).all()
    red = odd[:, 6:, 0] - odd[:, 6:, 2]
    assert set(np.argsort(-red, axis=None)[:2]) == {2 * 6 + 4, 3 * 6 + 4} and red.max() > 200
    narrows("detect", "p.narrows", "pictures", "--explain", "--out", "heat.parquet", cwd=place)
    told = pq.read_table(place / "heat.parquet")
    assert told.schema.names[:5] == ["path", "score", "p_value", "anomaly", "why"]
    hot = told["heat.image"].combine_chunks().to_numpy_ndarray()
    assert hot.shape == (60, 8, 6) and hot[7].max() == hot[7, 2:4, 4].max()


def test_columns_of_any_arrow_type_are_read(place):
    """Among them those that Arrow cannot take rows from."""
    table = pa.table({"age": AGE, "pay": FRAME["pay"], "town": pa.array(FRAME["town"], pa.string_view())})
    with ipc.new_file(place / "people.arrow", table.schema) as file:
        file.write_table(table)
    told = [narrows("detect", "m.narrows", f"people{suffix}", cwd=place).stdout for suffix in (".arrow", ".csv")]
    assert told[0] == told[1]


# poor data

UNFIT = {
    "model of another job": (("detect", "other.narrows", "people.csv"), 1, "not fitted to detect"),
    "contamination": (
        ("fit", "people.csv", "--for", "detect", "--contamination", 0.6, "--out", "x.narrows"),
        1,
        "contamination=0.6; wanted: auto, or a share above 0 and up to 0.5",
    ),
    "contamination in words": (
        ("fit", "people.csv", "--for", "detect", "--contamination", "some", "--out", "x.narrows"),
        2,
        "contamination",
    ),
    "contamination without the job": (
        ("fit", "people.csv", "--contamination", 0.1, "--out", "x.narrows"),
        1,
        "--for detect",
    ),
    "all normal for another job": (
        ("fit", "people.csv", "--for", "generate", "--all-normal", "--out", "x.narrows"),
        1,
        "--for detect",
    ),
    "alarms": (("detect", "m.narrows", "people.csv", "--alarms", 2), 1, "a share between 0 and 1"),
    "few alarms": (("detect", "m.narrows", "people.csv", "--alarms", 0.001), 1, "rows held out from training"),
    "a folder of rows": (("detect", "m.narrows", "people.csv", "--out", "folder"), 1, "one image each"),
    "over the data": (("detect", "m.narrows", "people.csv", "--out", "people.csv"), 1, "read here"),
    "infinite": (("detect", "m.narrows", "infinite.csv", "--out", "x.csv"), 1, "column 'pay', row 3"),
    "infinite in training": (
        ("fit", "infinite.csv", "--for", "detect", "--out", "x.narrows"),
        1,
        "column 'pay', row 3",
    ),
    "one row": (("fit", "one.csv", "--for", "detect", "--out", "x.narrows"), 1, "at least 20 rows"),
    "no rows": (("detect", "m.narrows", "none.csv"), 1, "no rows"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_cannot_be_is_told_in_a_sentence(place, name):
    words, code, said = UNFIT[name]
    narrows("fit", "people.csv", "--epochs", 1, "--latent", 2, "--out", "other.narrows", cwd=place)
    FRAME.assign(pay=FRAME["pay"].where(FRAME.index != 3, np.inf)).to_csv(place / "infinite.csv", index=False)
    FRAME[:1].to_csv(place / "one.csv", index=False)
    FRAME[:0].to_csv(place / "none.csv", index=False)
    with nothing_new(place):
        assert said in narrows(*words, cwd=place, code=code).stderr


def test_poor_data_goes_all_the_way(tmp_path):
    (tmp_path / "same.csv").write_text("a,b,c\n" + "1,x,2.5\n" * 60)
    (tmp_path / "other.csv").write_text("a,b,c\n1,x,2.5\n1,x,3.5\n")
    done = narrows("fit", "same.csv", "--for", "detect", "--out", "m.narrows", cwd=tmp_path)
    assert "scores go without it" in done.stderr
    found = json.loads(narrows("detect", "m.narrows", "same.csv", "--json", cwd=tmp_path).stdout)
    assert found["anomalies"] == 0 and found["network"] == "left out"
    found = json.loads(narrows("detect", "m.narrows", "other.csv", "--json", cwd=tmp_path).stdout)
    assert found["anomalies"] == 1 and found["worst"][0]["why"].startswith("c 3.50 in place of 2.50")
    FRAME[:15].to_csv(tmp_path / "few.csv", index=False)
    assert (
        "15 rows say little" in narrows("fit", "few.csv", "--for", "detect", "--out", "f.narrows", cwd=tmp_path).stderr
    )
    said = narrows("detect", "f.narrows", "few.csv", cwd=tmp_path).stdout
    assert "15 training rows, which are smaller than those of new rows" in " ".join(said.split())


def test_strange_rows_are_answered(place):
    FRAME.assign(**dict.fromkeys(FRAME, np.nan)).to_csv(place / "missing.csv", index=False)
    FRAME[["town", "pay", "age"]].to_csv(place / "turned.csv", index=False)
    missing = json.loads(narrows("detect", "m.narrows", "missing.csv", "--json", cwd=place).stdout)
    assert missing["anomalies"] == 0 and {row["score"] for row in missing["worst"]} == {0.0}
    told = [narrows("detect", "m.narrows", name, "--json", cwd=place).stdout for name in ("turned.csv", "people.csv")]
    assert told[0] == told[1]
