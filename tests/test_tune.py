"""Studies: they go on after a kill, two processes share one, dead trials are tried again, the page shows the curve."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from command import narrows
from narrows.errors import DataError, SettingError, TrainingError
from narrows.fitting import Plan
from narrows.report.page import report
from narrows.sizing import PART
from narrows.tasks.trials import Trial
from narrows.tasks.tune import JOURNAL, Study, tune
from narrows.tasks.tuned import curve, ranked, sentence
from test_sizing import rows_of

SOURCES = Path(__file__).parent.parent / "src"
optuna = pytest.importorskip("optuna")


@pytest.fixture(autouse=True)
def short():
    with mock.patch("narrows.tasks.trials.STEPS", 60):
        yield


def started(folder, trials):
    words = [sys.executable, "-m", "narrows", "tune", "x.npy", "--epochs", "1", "--trials", str(trials)]
    words += ["--folder", "study", "--out", f"m{time.monotonic_ns()}.narrows"]
    surroundings = {**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, cwd=folder, env=surroundings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def states(folder):
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "study" / JOURNAL))
    storage = optuna.storages.JournalStorage(backend)
    study = optuna.load_study(study_name="tune", storage=storage)
    return [trial.state.name for trial in study.trials]


def until(what, seconds=60):
    over = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < over, "it took too long"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_study_goes_on_and_counts_what_was_done(tmp_path):
    np.save(tmp_path / "x.npy", rows_of(2, 6, 300))
    process = started(tmp_path, 40)
    until(lambda: (tmp_path / "study" / JOURNAL).exists() and list((tmp_path / "study" / "costs").glob("*.npy")))
    until(lambda: "RUNNING" in states(tmp_path))
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = states(tmp_path)
    done = sum(state in ("COMPLETE", "PRUNED") for state in before)
    assert 1 <= done < 40
    tune(tmp_path / "x.npy", Plan(epochs=1), trials=done + 2, folder=tmp_path / "study")
    after = states(tmp_path)
    assert sum(state in ("COMPLETE", "PRUNED") for state in after) == done + 2
    assert after[: len(before)].count("RUNNING") == 0  # the one that died was marked so


@pytest.mark.slow
def test_two_processes_share_a_study(tmp_path):
    np.save(tmp_path / "x.npy", rows_of(2, 6, 300))
    both = [started(tmp_path, 8) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert 8 <= sum(state in ("COMPLETE", "PRUNED") for state in states(tmp_path)) <= 9
    assert len(list((tmp_path / "study").glob("worker-*"))) == 2


def test_a_study_from_the_command_line(tmp_path):
    x = rows_of(2, 6, 300)
    np.save(tmp_path / "x.npy", x)
    words = ["tune", "x.npy", "--trials", "3", "--epochs", "1", "--out", "m.narrows", "--verbose", "0"]
    facts = json.loads(narrows(*words, "--json", cwd=tmp_path).stdout)
    assert len(facts["trials"]) >= 3 and facts["latent"] in {trial["latent"] for trial in facts["trials"]}
    shown = narrows(*words, cwd=tmp_path)  # the study is done: nothing is tried, the same is chosen
    assert "Trials" in shown.stdout and f"a code of {facts['latent']}" in shown.stdout
    narrows("tune", "x.npy", "--recipe", "vae", *words[2:], cwd=tmp_path, code=1)
    np.save(tmp_path / "x.npy", x + 1)
    assert "other data" in narrows(*words, cwd=tmp_path, code=1).stderr
    assert "fit --for impute" in narrows(*words, "--for", "impute", cwd=tmp_path, code=1).stderr


def test_a_trial_that_dies_is_tried_once_more(tmp_path):
    run, calls = Trial.run, []

    def dies_first(self, settings, report, until):
        calls.append(dict(settings))
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return run(self, settings, report, until)

    with mock.patch.object(Trial, "run", dies_first):
        model = tune(rows_of(2, 6, 200), Plan(epochs=1), trials=2, folder=tmp_path)
    assert calls[0] == calls[1]
    assert next(trial["state"] for trial in model.parts[PART].facts["trials"]) == "fail"
    report(model, rows_of(2, 6, 50), tmp_path / "page.html")
    assert "chosen" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(("rate", "kept"), [(1e-9, "defaults"), (None, "tuned")])
def test_the_better_of_what_was_chosen_and_the_defaults_is_kept(tmp_path, rate, kept):
    x, plan = rows_of(2, 6, 400), Plan(epochs=5, lr=None if rate else 1e-9, latent=2)
    chosen = Plan(epochs=5, lr=rate, latent=2)  # one of the two hardly moves
    with mock.patch.object(Study, "best_plan", return_value=chosen):
        model = tune(x, plan, trials=1, folder=tmp_path)
    told = model.parts["tune"].facts
    assert min(told["fitted"], key=told["fitted"].get) == kept
    trial = Study(x, plan, tmp_path).trial
    assert float(trial.judge.costs(model.module).mean()) == pytest.approx(told["fitted"][kept], rel=1e-5)
    assert ("by the defaults" in sentence(told)) == (kept == "defaults")


def test_trials_that_all_fail_say_why():
    with (
        mock.patch.object(Trial, "run", side_effect=RuntimeError("no luck")),
        pytest.raises(TrainingError, match="luck"),
    ):
        tune(rows_of(2, 6, 200), Plan(epochs=1), trials=2)


def test_what_tuning_refuses(tmp_path):
    x = rows_of(2, 6, 200)
    with pytest.raises(SettingError, match="trials=0"):
        tune(x, trials=0)
    with pytest.raises(SettingError, match="time_limit=-1"):
        tune(x, time_limit=-1)
    with pytest.raises(SettingError, match="no trial ended within"):
        tune(x, time_limit=1e-3)
    with pytest.raises(DataError, match="held out"):
        tune(x[:40], trials=1)
    with mock.patch.dict(sys.modules, {"optuna": None}), pytest.raises(SettingError, match="narrows\\[tune\\]"):
        tune(x, trials=1)


def test_what_is_given_is_not_searched():
    plan = Plan("denoising:noise=0.2,mask=0", latent=3, lr=0.01)
    trial = Trial(plan, None, range(200), None)  # type: ignore[arg-type]
    assert set(trial.searched) == {"depth", "width", "batch_size", "noise"}
    settled = trial.planned({"depth": 2, "width": 32, "batch_size": 64, "noise": 0.5})
    assert settled.network.dense.hidden == (32, 32) and settled.training.batch_size == 64
    assert "noise=0.5" in str(settled.recipe) and settled.latent == 3


def test_the_curve_takes_the_best_of_each_size():
    trials = [{"latent": 2, "score": 0.5, "error": 0.1}, {"latent": 2, "score": 0.3, "error": 0.2}, {"latent": 1}]
    assert curve({"trials": trials}) == [(2, 0.3, 0.2)]
    assert ranked({"trials": trials})[-1] == {"latent": 1}
