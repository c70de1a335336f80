"""Verdicts on steps: those of a file, and the same as they arrive, from the command line on."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from narrows import Plan, load
from narrows.errors import SettingError
from narrows.tasks.detect import Detector
from narrows.tasks.diagnosis import fit
from narrows.tasks.purposes import purpose_of
from narrows.tasks.steps import StepVerdicts
from narrows.tasks.verdicts import Verdicts

WINDOW, ODD = 12, slice(300, 305)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, times = tmp_path_factory.mktemp("steps"), np.arange(400)
    noise = 0.1 * np.random.default_rng(0).normal(size=(400, 2))
    waves = np.stack([np.sin(times / 5), np.cos(times / 5)], axis=1) + noise
    waves[ODD, 0] += 3
    lines = [f"{load:.5f},{heat:.5f}" for load, heat in waves]
    (folder / "waves.csv").write_text("\n".join(["load,heat", *lines]) + "\n")
    fitting = [
        folder / "waves.csv",
        "--for",
        "detect",
        "--window",
        WINDOW,
        "--stride",
        1,
        "--out",
        folder / "m.narrows",
    ]
    run("fit", *fitting)
    return folder


def run(*words, lines=None):
    command = [sys.executable, "-m", "narrows", *map(str, words)]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_odd_steps_score_highest_and_their_channel_is_blamed(files):
    run("detect", files / "m.narrows", files / "waves.csv", "--steps", "--out", files / "steps.parquet")
    told = pq.read_table(files / "steps.parquet").to_pandas()
    assert told.step.tolist() == list(range(400))
    assert told.score.idxmax() in range(ODD.start - WINDOW, ODD.stop + WINDOW)
    assert told.anomaly[ODD].all() and not told.anomaly[:250].any()
    assert (told["blame.load"] > told["blame.heat"])[ODD].all()
    np.testing.assert_allclose(told[["blame.load", "blame.heat", "remainder"]].sum(axis=1), told.score)


def test_steps_that_arrive_are_scored_as_windows_are_and_a_stopped_run_goes_on(files):
    lines = (files / "waves.csv").read_text().splitlines(keepends=True)
    whole = [json.loads(line) for line in run("follow", files / "m.narrows", lines="".join(lines[:60])).splitlines()]
    state = files / "heard.state"
    halves = "".join(
        run("follow", files / "m.narrows", "--state", state, lines="".join([lines[0], *part]))
        for part in (lines[1:31], lines[31:60])
    )
    heard, last = whole[:59], whole[59:]
    assert [json.loads(line) for line in halves.splitlines()] == heard
    assert [each["score"] for each in heard[: WINDOW - 1]] == [None] * (WINDOW - 1)
    model = load(files / "m.narrows")
    windows = next(model.batches(files / "waves.csv"))[1][: 60 - WINDOW]
    scores = Detector.of(model).scores(windows).tolist()
    assert [each["score"] for each in heard[WINDOW - 1 :]] == pytest.approx(scores, rel=1e-5)
    settled = [each for line in heard + last for each in line["settled"]]
    assert [each["step"] for each in settled] == list(range(59))


def test_rows_that_are_no_windows_have_no_steps():
    purpose = purpose_of("detect")
    rows = np.random.default_rng(0).normal(size=(60, 3))
    model = fit(rows, purpose.settle(Plan(purpose.recipe, epochs=1)), learn=dict(purpose.learn))
    with pytest.raises(SettingError, match="windows of a series"):
        StepVerdicts(Verdicts(model))
