"""A run that was killed goes on exactly; a folder that cannot be trusted is refused; a full disk costs no model."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from narrows import tensorfile
from narrows.errors import FitWarning, ModelFileError, NarrowsError, SettingError
from narrows.train.checkpoint import RunFolder
from narrows.train.loop import train
from narrows.train.resident import Resident
from narrows.train.settings import Training, Watch
from small_run import rows_of_rank, small_module, small_run

SCRIPT = Path(__file__).with_name("small_run.py")
KILLED = ("sgd", "adamw", "muon")


def same_bits(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def kill_at_a_random_moment(optimizer: str, folder: Path) -> bool:
    """Begin a run, wait for a checkpoint and a random line of the metrics, then a random moment, then SIGKILL."""
    wanted, metrics = random.randrange(3, 45), folder / "metrics.jsonl"
    with subprocess.Popen([sys.executable, str(SCRIPT), optimizer, str(folder)]) as process:
        while process.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < wanted):
            time.sleep(0.001)
        while process.poll() is None and not (folder / "checkpoint.safetensors").exists():
            time.sleep(0.001)
        time.sleep(random.random() * 0.02)
        process.send_signal(signal.SIGKILL)
    return process.returncode == -signal.SIGKILL


def test_runs_killed_at_random_moments_end_bit_for_bit_as_if_they_had_not_been(tmp_path):
    with ThreadPoolExecutor(len(KILLED)) as killers:  # all at once: while one is waited for, others would end
        assert list(killers.map(kill_at_a_random_moment, KILLED, [tmp_path / optimizer for optimizer in KILLED]))
    for optimizer in KILLED:
        whole, expected = small_run(optimizer, None, every=60, epochs=160)
        resumed, history = small_run(optimizer, tmp_path / optimizer, resume=True, every=60, epochs=160)
        assert same_bits(whole, resumed), optimizer
        assert history.facts() == expected.facts()
        lines = (tmp_path / optimizer / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [record["epoch"] for record in expected.records]


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "muon"])
def test_a_run_whose_source_fails_at_any_step_goes_on_exactly(tmp_path, optimizer):
    whole, expected = small_run(optimizer, None)
    for step in (2, 3, 7, 8, 20, 42):  # after the first step; last of an epoch, first of one, midway, very last
        folder = tmp_path / str(step)
        with pytest.raises(ConnectionError):
            small_run(optimizer, folder, fail_at=step)
        assert json.loads((folder / "run.json").read_text())["reason"] == "failed"
        resumed, history = small_run(optimizer, folder, resume=True, every=60)
        assert same_bits(whole, resumed), step
        assert history.facts() == expected.facts()


def test_two_kills_in_a_row_and_a_resume_of_the_finished_run(tmp_path):
    whole, expected = small_run("adamw", None)
    with pytest.raises(ConnectionError):
        small_run("adamw", tmp_path, fail_at=9)
    with pytest.raises(ConnectionError):
        small_run("adamw", tmp_path, resume=True, fail_at=11)
    for _ in range(2):
        resumed, history = small_run("adamw", tmp_path, resume=True)
        assert same_bits(whole, resumed)
        assert history.facts() == expected.facts()


def test_the_folder_tells_what_ran(tmp_path):
    _, history = small_run("adamw", tmp_path / "new" / "run")
    told = json.loads((tmp_path / "new" / "run" / "run.json").read_text())
    assert told["reason"] == history.reason == "epochs"
    assert told["settings"]["optimizer"] == "adamw" and told["settings"]["seed"] == 7
    assert {"machine", "versions", "started", "finished"} <= told.keys()
    lines = [json.loads(line) for line in (tmp_path / "new" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines == history.records
    assert sorted(os.listdir(tmp_path / "new" / "run")) == ["checkpoint.safetensors", "metrics.jsonl", "run.json"]


def test_resume_without_a_checkpoint_begins_at_the_beginning(tmp_path):
    whole, _ = small_run("adamw", None)
    with pytest.raises(ConnectionError):
        small_run("adamw", tmp_path, fail_at=1)
    with pytest.warns(FitWarning, match=r"no checkpoint in .*: training begins at the beginning"):
        begun, _ = small_run("adamw", tmp_path, resume=True)
    assert same_bits(whole, begun)


def test_a_new_run_replaces_an_unfinished_one_with_a_warning(tmp_path):
    with pytest.raises(ConnectionError):
        small_run("adamw", tmp_path, fail_at=20)
    warned = pytest.warns(FitWarning, match=r"the unfinished run in .* is begun anew; --resume would have gone on")
    with warned, pytest.raises(ConnectionError):
        small_run("sgd", tmp_path, fail_at=1)
    assert not (tmp_path / "checkpoint.safetensors").exists()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_killed_run_is_unfinished_whatever_run_json_holds(tmp_path):
    for told in ("", "[1]", "{}", None):
        small_run("adamw", tmp_path)
        (tmp_path / "run.json").unlink()
        if told is not None:
            (tmp_path / "run.json").write_text(told)
        with pytest.warns(FitWarning, match="begun anew"):
            small_run("adamw", tmp_path)


def test_a_new_run_replaces_a_finished_one_without_a_word(tmp_path):
    small_run("adamw", tmp_path, epochs=1)
    small_run("sgd", tmp_path, epochs=1)
    assert json.loads((tmp_path / "run.json").read_text())["settings"]["optimizer"] == "sgd"


def test_what_a_kill_left_half_written_is_removed_and_nothing_else(tmp_path):
    ours = [".checkpoint.0123456789ab.safetensors", ".run.0123456789ab.json", ".metrics.0123456789ab.jsonl"]
    others = [".checkpoint.mine.safetensors", ".0123456789ab.json", "notes.txt"]
    for name in ours + others:
        (tmp_path / name).write_text("half")
    small_run("adamw", tmp_path, epochs=1)
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "checkpoint.safetensors", "metrics.jsonl", "run.json"])


def test_numbers_of_numpy_are_numbers(tmp_path):
    stream, about = Resident(rows_of_rank(100), 16), {"hidden": (np.int64(16),), "share": np.float32(0.5)}
    training = Training(batch_size=np.int64(16), clip=np.float32(1), patience=np.int32(4), weight_decay=np.float64(0.1))
    watch = Watch(folder=tmp_path, about=about)
    for resume in (False, True):
        options = {"epochs": np.int64(2), "lr": np.float32(0.5), "seed": np.int64(3)}
        train(small_module(), stream, None, training, watch=replace(watch, resume=resume), **options)
    assert isinstance(training.batch_size, np.int64)  # stored as given
    told = json.loads((tmp_path / "run.json").read_text())["settings"]
    assert (told["batch_size"], told["lr"], told["epochs"], told["seed"]) == (16, 0.5, 2, 3)
    assert (told["hidden"], told["share"]) == ([16], 0.5)


def test_the_threads_told_are_those_before_training_changed_them(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        small_run("adamw", tmp_path, epochs=1)
    finally:
        torch.set_num_threads(threads)
    assert json.loads((tmp_path / "run.json").read_text())["machine"]["threads"] == 2


def test_a_checkpoint_that_torch_cannot_write_costs_no_run(tmp_path):
    with pytest.warns(FitWarning, match=r"run folder .*training goes on without"):
        RunFolder(tmp_path, {}).save({}, {"nowhere": torch.empty(3, device="meta")})
    assert os.listdir(tmp_path) == []


def test_other_settings_are_refused_by_name(tmp_path):
    small_run("adamw", tmp_path)
    with pytest.raises(SettingError, match=r"optimizer='sgd' .*optimizer='adamw', as it began"):
        small_run("sgd", tmp_path, resume=True)
    with pytest.raises(SettingError, match="epochs=9"):
        small_run("adamw", tmp_path, resume=True, epochs=9)
    with pytest.raises(SettingError, match=r"budget=0.0 .*budget=2000000000.0, as it began"):
        small_run("adamw", tmp_path, resume=True, budget=0.0)  # rows would be read in another order
    small_run("adamw", tmp_path, resume=True, time_limit=1e9, every=7.0)


def test_a_checkpoint_of_another_module_is_refused(tmp_path):
    small_run("adamw", tmp_path)
    facts, tensors = tensorfile.read(tmp_path / "checkpoint.safetensors", "checkpoint")
    name = next(name for name in tensors if name.startswith("module/") and tensors[name].ndim == 2)
    tensorfile.write(tmp_path / "checkpoint.safetensors", "checkpoint", facts, {**tensors, name: torch.zeros(2, 2)})
    with pytest.raises(SettingError, match=r"of shape \(2, 2\) in the checkpoint"):
        small_run("adamw", tmp_path, resume=True)


def test_damaged_checkpoints_are_refused_clearly(tmp_path):
    small_run("adamw", tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    whole, rng = path.read_bytes(), random.Random(0)
    for trial in range(40):
        broken = bytearray(whole)
        if trial % 2:
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        else:
            del broken[rng.randrange(len(broken)) :]
        path.write_bytes(broken)
        with pytest.raises(ModelFileError):
            small_run("adamw", tmp_path, resume=True)
    tensorfile.write(path, "model", {}, {"a": torch.zeros(1)})
    with pytest.raises(ModelFileError, match="a checkpoint file"):
        small_run("adamw", tmp_path, resume=True)


def test_a_disk_that_fills_up_costs_the_checkpoint_not_the_model(tmp_path):
    whole, expected = small_run("adamw", None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.warns(FitWarning, match=r"run folder .*training goes on without"):
            trained, history = small_run("adamw", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert same_bits(whole, trained) and history.facts() == expected.facts()
    assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl", "run.json"]


def test_a_folder_that_cannot_be_made_is_an_error_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NarrowsError, match="no run folder"):
        small_run("adamw", tmp_path / "file" / "run")


def test_writing_checkpoints_draws_no_random_numbers_and_changes_no_bit(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same_bits(small_run("adamw", None)[0], small_run("adamw", tmp_path)[0])
