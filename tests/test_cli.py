"""The command line, run as a user runs it: every verb on real files, resuming after a kill, and every exit code."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from command import narrows
from narrows import load

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a mixed table with holes, a model of it, and a model of digits."""
    folder = tmp_path_factory.mktemp("cli")
    generator = np.random.default_rng(0)
    size = generator.normal(10, 3, 400)
    frame = pd.DataFrame(
        {
            "size": size.round(3),
            "weight": (2 * size + generator.normal(0, 0.1, 400)).round(3),
            "rooms": generator.integers(1, 9, 400),
            "town": generator.choice(["Bern", "Köln", 'a "quoted", one'], 400),
            "seen": pd.date_range("2025-01-01", periods=400, freq="h").strftime("%Y-%m-%d %H:%M:%S"),
        }
    )
    frame.loc[5, "size"] = np.nan
    frame.loc[6, "town"] = None
    frame.to_csv(folder / "homes.csv", index=False)
    narrows("fit", "homes.csv", "--latent", 3, "--hidden", 16, "--epochs", 20, "--out", "homes.narrows", cwd=folder)
    narrows("fit", "digits", "--latent", 4, "--epochs", 3, "--out", "digits.narrows", cwd=folder)
    return folder


def test_fit_leaves_a_model_and_a_run(place):
    model = load(place / "homes.narrows")
    assert [c.kind for c in model.schema] == ["number", "number", "number", "category", "date"]
    assert model.code_size == 3 and model.network.dense.hidden == (16,)
    run = json.loads((place / "homes.run" / "run.json").read_text())
    lines = (place / "homes.run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 20 == model.facts["epochs"]
    assert "homes.csv" in json.dumps(run)
    assert str(place) not in json.dumps(model.facts)


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet", ".jsonl"])
def test_codes_go_out_and_come_back(place, suffix):
    codes, rows = f"codes{suffix}", f"rows{suffix if suffix != '.npy' else '.csv'}"
    narrows("encode", "homes.narrows", "homes.csv", "--out", codes, cwd=place)
    if suffix == ".npy":
        assert np.load(place / codes).shape == (400, 3)
    if suffix == ".jsonl":
        assert set(json.loads((place / codes).read_text().splitlines()[0])) == {"z0", "z1", "z2"}
        return  # JSON lines are not yet read
    narrows("decode", "homes.narrows", codes, "--out", rows, cwd=place)
    decoded = pd.read_csv(place / rows) if rows.endswith(".csv") else pd.read_parquet(place / rows)
    narrows("reconstruct", "homes.narrows", "homes.csv", "--out", "back.parquet", cwd=place)
    back = pd.read_parquet(place / "back.parquet")
    assert list(decoded.columns) == list(back.columns) == ["size", "weight", "rooms", "town", "seen"]
    np.testing.assert_allclose(decoded["weight"], back["weight"], rtol=1e-4)
    assert (decoded["town"] == back["town"]).all()


def test_reconstructions_have_the_columns_and_types_of_the_data(place):
    narrows("reconstruct", "homes.narrows", "homes.csv", "--out", "again.csv", cwd=place)
    data, again = pd.read_csv(place / "homes.csv"), pd.read_csv(place / "again.csv")
    assert list(again.columns) == list(data.columns)
    assert again["rooms"].dtype.kind == "i" and again["size"].dtype.kind == "f"
    assert set(again["town"]) <= set(data["town"].dropna()) and again.notna().all().all()
    assert pd.to_datetime(again["seen"]).notna().all()
    narrows("reconstruct", "homes.narrows", "homes.csv", "--out", "again.parquet", cwd=place)
    types = {f.name: str(f.type) for f in pq.read_schema(place / "again.parquet")}
    assert types["rooms"] == "int64" and types["seen"].startswith("timestamp") and types["size"] == "double"


def test_evaluate_compares_with_pca_and_the_mean(place):
    shown = narrows("evaluate", "digits.narrows", "digits", cwd=place).stdout
    assert "PCA 4" in shown and "mean" in shown
    figures = json.loads(narrows("evaluate", "digits.narrows", "digits", "--json", cwd=place).stdout)
    assert figures["rows"] == 1797


def test_report_is_one_page(place):
    narrows("report", "homes.narrows", "homes.csv", "--out", "page.html", cwd=place)
    page = (place / "page.html").read_text()
    assert "weight" in page and 'src="http' not in page and "<script" not in page


def test_info_says_what_a_model_is(place):
    assert "town: category" in narrows("info", "homes.narrows", cwd=place).stdout
    facts = json.loads(narrows("info", "homes.narrows", "--json", cwd=place).stdout)
    assert facts["code"] == 3 and facts["settings"]["optimizer"] == "muon"
    assert facts["parts"] == ["baseline", "diagnosis", "snapshots"]
    assert [column["kind"] for column in facts["columns"]][3:] == ["category", "date"]


def test_options_come_from_a_file_and_the_command_line_comes_first(place):
    (place / "options.toml").write_text(
        'latent = 2\nepochs = 3\nrecipe = "vae:beta=0.5"\nhidden = [12, 6]\nclip = 0.5\n'
    )
    words = ("fit", "homes.csv", "--config", "options.toml", "--epochs", 2, "--out", "c.narrows", "--json")
    facts = json.loads(narrows(*words, cwd=place).stdout)
    model = load(place / "c.narrows")
    assert (facts["epochs"], model.code_size, model.network.dense.hidden) == (2, 2, (12, 6))
    assert model.recipe.arguments["beta"] == 0.5
    told = "".join(narrows("info", "c.narrows", cwd=place).stdout.split())
    assert str(model.recipe) in told  # whole, though longer than a line
    assert '"clip": 0.5' in (place / "c.run" / "run.json").read_text()
    (place / "wrong.toml").write_text("lattent = 2\n")
    assert (
        "lattent"
        in narrows("fit", "homes.csv", "--config", "wrong.toml", "--out", "w.narrows", cwd=place, code=2).stderr
    )


def test_what_a_column_is_can_be_said(place):
    fit = ("fit", "homes.csv", "--latent", 2, "--epochs", 1, "--hidden", 8, 4, "--out", "k.narrows")
    narrows(*fit, "--column.rooms", "category", "--column.size", "minmax", cwd=place)
    model = load(place / "k.narrows")
    assert model.network.dense.hidden == (8, 4)
    assert [model.schema[name].kind for name in ("rooms", "weight")] == ["category", "number"]
    assert model.schema["size"].bounded and not model.schema["weight"].bounded


def test_validation_by_group_by_time_and_from_a_file(place):
    fit = ("fit", "homes.csv", "--latent", 2, "--epochs", 1, "--json", "--out", "v.narrows")
    group = json.loads(narrows(*fit, "--group", "town", "--validation", 0.3, cwd=place).stdout)
    time_ = json.loads(narrows(*fit, "--time", "seen", "--validation", 0.25, cwd=place).stdout)
    given = json.loads(narrows(*fit, "--validation", "homes.csv", cwd=place).stdout)
    none = json.loads(narrows(*fit, "--validation", 0, cwd=place).stdout)
    assert group["rows"] + group["validation_rows"] == 400 and group["validation_rows"] > 50
    assert time_["validation_rows"] == 100
    assert (given["rows"], given["validation_rows"]) == (400, 400)
    assert (none["rows"], none["validation_rows"]) == (400, 0)


def test_a_stream_over_budget_learns_what_memory_learns(place):
    """With a budget of nothing every epoch reads the file again; the model is as good."""
    fit = ("fit", "homes.csv", "--latent", 3, "--hidden", 16, "--epochs", 20, "--batch-size", 64)
    narrows(*fit, "--budget", 0, "--out", "s.narrows", cwd=place)
    narrows(*fit, "--out", "r.narrows", cwd=place)
    losses = [load(place / name).facts["records"][-1]["val_loss"] for name in ("s.narrows", "r.narrows")]
    assert losses[0] == pytest.approx(losses[1], rel=0.25)


TABLE = ("homes.csv", "--recipe", "vae", "--hidden", 32, "--epochs", 400)
TEXTS = ("texts.parquet", "--column.text", "tokens", "--budget", 0)
RUNS = {
    "resident": TABLE,
    "streamed": (*TABLE, "--budget", 0),
    "recurrent": (*TEXTS, "--network", "recurrent", "--recurrent.units", 16, "--recurrent.word-dropout", 0.2),
    "transformer": (*TEXTS, "--network", "transformer", "--transformer.width", 8, "--transformer.dropout", 0.1),
    "conv": ("homes.npy", "--column.x", "series", "--network", "conv", "--recipe", "denoising", "--budget", 0),
}


@pytest.mark.parametrize("run", RUNS)
def test_a_killed_run_resumes_to_the_same_bytes(place, run):
    generator = np.random.default_rng(0)
    np.save(place / "homes.npy", generator.normal(size=(300, 20, 2)))
    lines = [" ".join(generator.choice(["to", "be", "or", "not"], 4)) for _ in range(300)]
    pq.write_table(pa.table({"text": lines, "n": range(300)}), place / "texts.parquet", row_group_size=64)
    fit = ("fit", *RUNS[run], "--latent", 3, "--batch-size", 16, "--checkpoint-every", 0.02, "--patience", 1000)
    fit = fit if "--epochs" in fit else (*fit, "--epochs", 25)
    narrows(*fit, "--out", "whole.narrows", cwd=place)
    chance, kills = random.Random(0), 0
    words = [sys.executable, "-m", "narrows", *map(str, fit), "--resume", "--out", "killed.narrows"]
    checkpoint = place / "killed.run" / "checkpoint.safetensors"
    checkpoint.unlink(missing_ok=True)
    for _ in range(3):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        child = subprocess.Popen(words, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while child.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before):
            time.sleep(0.01)
        time.sleep(chance.random() * 0.5)
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.wait()
    assert kills, "the run was over before it could be killed"
    narrows(*fit, "--resume", "--out", "killed.narrows", cwd=place)
    assert (place / "killed.narrows").read_bytes() == (place / "whole.narrows").read_bytes()


MISTAKES = [
    (("fit", "nothing.csv", "--out", "x.narrows"), 1, "nothing.csv"),
    (("fit", "homes.csv", "--out", "no/such/folder/x.narrows", "--epochs", 1), 1, "no/such/folder"),
    (("fit", "homes.csv", "--recipe", "veo", "--out", "x.narrows"), 1, "one of plain, linear, denoising"),
    (("fit", "homes.csv", "--optimizer", "magic", "--out", "x.narrows"), 2, "optimizer"),
    (("fit", "homes.csv", "--latent", "many", "--out", "x.narrows"), 2, "latent"),
    (("fit", "homes.csv", "--group", "planet", "--out", "x.narrows"), 1, "planet"),
    (("fit", "homes.csv", "--column.town", "number", "--out", "x.narrows"), 1, "town"),
    (("fit", "homes.csv"), 2, "out"),
    (("encode", "homes.csv", "homes.csv", "--out", "x.npy"), 1, "homes.csv"),
    (("encode", "homes.narrows", "digits", "--out", "x.npy"), 1, "town"),
    (("encode", "homes.narrows", "homes.csv", "--out", "x.xyz"), 1, ".parquet"),
    (("decode", "homes.narrows", "homes.csv", "--out", "x.csv"), 1, "numbers"),
    (("info", "none.narrows"), 1, "none.narrows"),
    (("fly",), 2, "fly"),
    (("fit", "homes.csv", "--out", "homes.csv"), 1, ".narrows"),
    (("encode", "homes.narrows", "homes.csv", "--out", "homes.csv"), 1, "read here"),
    (("reconstruct", "homes.narrows", "homes.csv", "--out", "./homes.csv"), 1, "read here"),
    (("report", "homes.narrows", "homes.csv", "--out", "homes.narrows"), 1, ".html"),
    (("fit", "homes.csv", "--group", "town", "--validation", 0, "--out", "x.narrows"), 1, "town"),
    (("fit", "homes.csv", "--recipe", "linear", "--hidden", 5, "--out", "x.narrows"), 1, "hidden"),
    (("fit", "homes.csv", "--optimizer", "gd", "--budget", 0, "--out", "x.narrows"), 1, "budget"),
    (("fit", "homes.csv", "--column.rooms", "wide", "--out", "x.narrows"), 1, "quantile"),
    (("fit", "homes.csv", "--wings", "2", "--out", "x.narrows"), 2, "wings"),
]


@pytest.mark.parametrize(("words", "code", "said"), MISTAKES, ids=[" ".join(map(str, m[0]))[:50] for m in MISTAKES])
def test_mistakes_are_named_and_leave_nothing_behind(place, words, code, said):
    before = {path.name for path in place.iterdir()}
    done = narrows(*words, cwd=place, code=code)
    assert said in done.stderr
    assert {path.name for path in place.iterdir()} - before <= {"x.run"}


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared data sets")
def test_a_census_table_goes_through_and_comes_back(tmp_path):
    data = SHARED / "tabular" / "adult-train.csv.gz"
    narrows("fit", data, "--latent", 6, "--epochs", 1, "--out", "a.narrows", cwd=tmp_path)
    narrows("encode", "a.narrows", data, "--out", "codes.npy", cwd=tmp_path)
    narrows("reconstruct", "a.narrows", data, "--out", "back.csv", cwd=tmp_path)
    assert np.load(tmp_path / "codes.npy").shape == (32561, 6)
    back = pd.read_csv(tmp_path / "back.csv")
    data = pd.read_csv(data, header=None, skipinitialspace=True, na_values="?")
    assert back.shape == data.shape
    for ours, theirs in zip(back, data, strict=True):
        assert back[ours].dtype == data[theirs].dtype
        if data[theirs].dtype.kind not in "if":
            assert set(back[ours]) <= set(data[theirs].dropna())


def test_windows_come_back_and_can_be_read_again(place):
    """As tensors alone in .npy, beside their starts and stamps in .parquet; neither is cut into windows again."""
    fit = ("fit", "homes.csv", "--window", 8, "--stamp", "seen", "--latent", 2, "--epochs", 1)
    table = pd.read_csv(place / "homes.csv").drop(columns="town")
    table.to_csv(place / "numbers.csv", index=False)
    narrows(fit[0], "numbers.csv", *fit[2:], "--out", "w.narrows", cwd=place)
    for name in ("w.npy", "w.parquet"):
        narrows("reconstruct", "w.narrows", "numbers.csv", "--out", name, cwd=place)
        assert json.loads(narrows("evaluate", "w.narrows", name, "--json", cwd=place).stdout)["rows"] == 50
    assert np.load(place / "w.npy").shape == (50, 8, 3)
    assert set(pq.read_table(place / "w.parquet").column_names) == {"x", "start", "seen"}
