"""Several processes that train one model, each of them real: what they end with is held against one process."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import HashStore

from group import ALIKE, OTHERS, alike, ended, run, start, table
from narrows import world
from narrows.errors import WorldError
from narrows.fitting import Plan, fit
from narrows.prepare.carried import packed, unpacked
from narrows.prepare.preparer import Preparer
from narrows.prepare.statistics import Statistics
from narrows.train.averaging import Spring, pace
from narrows.train.settings import Training


def same(first, second, tolerance=0.0):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        gap = (tensor.double() - second[name].double()).abs().max().item() if tensor.numel() else 0.0
        assert gap <= tolerance, f"{name} is {gap} apart"


def written(folder, sizes):
    """Parquet files of so many rows, each of other rows."""
    for number, rows in enumerate(sizes):
        values = table(rows, seed=number)
        columns = {f"c{place}": values[:, place] for place in range(values.shape[1])}
        pq.write_table(pa.table(columns), folder / f"{number}.parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("group")
    written(place, [700, 150, 40])
    return place


@pytest.fixture(scope="module")
def both(folder):
    """What two processes were left with."""
    done = run("everything", folder)
    assert done.codes == [0, 0], done.errors
    return done.left


def of(name, left):
    return {key.removeprefix(f"{name}/"): tensor for key, tensor in left.items() if key.startswith(f"{name}/")}


def test_all_processes_end_with_one_model(both):
    weights = [{n: t for n, t in left.items() if "/" in n and not n.endswith(("losses", "records"))} for left in both]
    assert len(weights[0]) > 200
    same(*weights)


def test_two_processes_take_the_steps_of_one(both):
    for name, tensor in alike().items():
        there, scale = both[0][name], 1.0
        if name.endswith("losses"):
            assert tensor.shape == there.shape == (15, 2)
            scale = max(1.0, tensor.max().item())
        error = (tensor.double() - there.double()).abs().max().item()
        assert error <= 1e-5 * scale, f"{name} is {error} apart after 105 steps"


def test_every_recipe_trains_in_two_processes(both):
    assert {name.split("/")[0] for name in both[0]} > {*OTHERS, *ALIKE}
    assert all(tensor.isfinite().all() for tensor in both[0].values() if tensor.is_floating_point())


@pytest.mark.parametrize("way", ["local:4", "async:3"])
def test_copies_that_are_averaged_learn_nearly_as_well(both, way):
    one, alone = both[0][f"{way}/losses"], both[0]["plain/losses"]
    assert one.shape == alone.shape
    assert not torch.equal(one, alone)
    assert one[-1, 1] < 0.75 * one[0, 1]
    assert one[-1, 1] < 1.5 * alone[-1, 1]


@pytest.mark.parametrize("speeds", [[1, 1], [1, 4], [3, 1, 1, 2]])
def test_a_center_gets_as_far_as_steps_in_common(speeds):
    """All copies go one way, one step of a common batch of 1 for each copy's share, as often as they are fast."""
    count = len(speeds)
    spring, copies, steps = Spring(torch.zeros(1), count), [torch.zeros(1) for _ in speeds], 0
    for turn in range(4000):
        for place, speed in enumerate(speeds):
            if turn % speed == 0:
                copies[place] = copies[place] + pace(count)
                copies[place] = copies[place] - spring.pull(copies[place])
                steps += 1
    assert spring.weights.item() == pytest.approx(steps / count, rel=0.01)


@pytest.mark.parametrize("name", ["uneven", "single"])
def test_every_row_is_read_once_an_epoch(both, name):
    """Also where shares are uneven, and where there are more processes than row groups."""
    told = of(name, both[0])
    assert told["records"][:, 0].tolist() == [int(told["total"]) * (epoch + 1) for epoch in range(4)]


def test_shares_of_a_stream_make_as_good_a_model(both, folder):
    alone = fit(str(folder / "*.parquet"), Plan(latent=3, epochs=4, training=Training(batch_size=50, budget=0)))
    assert alone.facts["rows"] == int(both[0]["uneven/total"])
    for name in ("uneven", "apart", "free"):
        assert both[0][f"{name}/records"][-1, 1] < 2 * alone.facts["records"][-1]["val_loss"]


def test_what_one_process_cannot_read_is_told_by_all(both):
    said = [bytes(left["gone"].tolist()).decode() for left in both]
    assert said[0].startswith("rank 1: ") and all("none.parquet" in word for word in said)


def test_processes_that_see_other_files_are_named(both):
    for left in both:
        said = bytes(left["fewer"].tolist()).decode()
        assert said.startswith("rank 1 has data 0.parquet: 1 pieces of 700 rows") or "rank 1 has data" in said
        assert "3 pieces of 890 rows" in said


def test_a_killed_process_costs_nothing_but_time(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"]
    command = [*torchrun, str(Path(__file__).with_name("group.py")), "killed", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "exitcode: -9" in done.stderr
    alone = fit(table(600), Plan(latent=3, epochs=8, training=Training(batch_size=50))).module.state_dict()
    same(load_file(tmp_path / "0.safetensors"), load_file(tmp_path / "1.safetensors"))
    same(alone, load_file(tmp_path / "0.safetensors"), 1e-4)


def test_another_version_is_refused(tmp_path):
    done = run("older", tmp_path)
    assert done.codes == [1, 1]
    assert "rank 1 has narrows 0.0.1; wanted: " in done.errors[1]
    assert "one version on all nodes" in done.errors[1]


def test_a_process_that_does_not_come_is_named(tmp_path):
    first, second = start("hasty", tmp_path)
    second.kill()
    done = ended([first], tmp_path)
    second.communicate()
    assert done.codes == [1]
    assert "waited 2 s for rank 1, which did not come" in done.errors[0]


def test_a_dead_store_is_named(tmp_path):
    first, second = start("hasty", tmp_path)
    first.kill()
    first.communicate()
    done = ended([second], tmp_path)
    assert done.codes == [1]
    assert "rank 1 of 2 cannot meet the others at 127.0.0.1:" in done.errors[0]


def test_a_launcher_that_makes_no_sense_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(WorldError, match="RANK=2 and WORLD_SIZE=2"):
        fit(table(50), Plan(latent=3, epochs=1))


def test_draws_for_some_rows_are_those_of_all():
    torch.manual_seed(0)
    whole = torch.randn(2, 7, 3)
    torch.manual_seed(0)
    with world.drawing((2, 4, 7)):
        assert torch.equal(world.drawn(torch.randn, 2, 4, 3, rows=-2), whole[:, 2:6])
        assert world.drawn(torch.randn, 2, 5, 3, rows=-2).shape == (2, 5, 3)


ROWS = {
    "number": pa.array([1.5, None, 3.0, -2.0] * 50),
    "whole": pa.array(range(200)),
    "word": pa.array(["a", "b", None, "c"] * 50),
    "flag": pa.array([True, False] * 100),
    "day": pa.array([None, 5, 9, 11] * 50, pa.date32()),
    "sorted": pa.DictionaryArray.from_arrays(pa.array([0, 1, 0, 1] * 50), ["low", "high"], ordered=True),
    "text": pa.array([f"some words {n % 70}" for n in range(200)]),
    "series": pa.array([[float(n), 2.0, 3.0 * n] for n in range(200)]),
}


def test_statistics_travel_whole():
    rows = pa.RecordBatch.from_pydict(ROWS)
    whole, parts = Statistics(rows.schema), [Statistics(rows.schema) for _ in range(2)]
    whole.update(rows, 0)
    parts[0].update(rows[:70], 0)
    parts[1].update(rows[70:], 70)
    first, second = (unpacked(packed(part), rows.schema) for part in parts)
    first.merge(second)
    assert first.fingerprint() == whole.fingerprint()
    learnt = [Preparer.learn(statistics) for statistics in (whole, first)]
    assert learnt[0].schema == learnt[1].schema
    prepared = [preparer.prepare(rows) for preparer in learnt]
    assert torch.allclose(prepared[0].numbers, prepared[1].numbers, atol=1e-6)
    assert torch.equal(prepared[0].codes, prepared[1].codes)


def test_what_an_earlier_meeting_left_is_not_believed():
    """A launcher's store outlives the processes that it starts anew."""
    store = HashStore()
    store.set("meeting", "earlier")
    store.set("earlier/verdict", json.dumps({"words": {"1": "old"}, "wrong": ["rank 1 has torch 1", "2", "one"]}))
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(world._meet, store, 1, 2)
        time.sleep(0.3)
        assert not other.done()
        first = pool.submit(world._meet, store, 0, 2)
        assert first.result() == other.result() != "earlier"
