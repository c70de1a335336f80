"""Balanced training: every group met equally often, in memory, streamed and in two processes; and errors by group."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from command import narrows
from narrows import world
from narrows.balance import Balance, evened, quotas_of, shares
from narrows.errors import DataError, FitWarning, SettingError
from narrows.fitting import Plan, fit
from narrows.networks.dense import Dense
from narrows.prepare.groups import Groups, labels_of
from narrows.report.page import report
from narrows.rows import Rows
from narrows.sources.source import open_source
from narrows.tasks.baseline import PART, Baseline, learn_baseline
from narrows.tasks.evaluate import evaluate, measure
from narrows.tasks.purposes import purpose_of
from narrows.train.resident import Resident
from narrows.train.settings import Training

CPU = torch.device("cpu")
SHARES = {"many": 0.9, "some": 0.08, "few": 0.02}


def uneven(rows: int = 1000) -> pd.DataFrame:
    """Rows of three kinds, one of them rare, each on a line of its own; `id` tells them apart."""
    draw = np.random.default_rng(0)
    kind = draw.choice(list(SHARES), rows, p=list(SHARES.values()))
    x = draw.normal(size=rows)
    slope = pd.Series(kind).map({"many": 1.0, "some": -1.0, "few": 3.0}).to_numpy()
    return pd.DataFrame({"kind": kind, "x": x, "y": slope * x, "id": np.arange(rows)})


def seen(stream, epoch: int) -> torch.Tensor:
    """(n,) what stands in the last number cell of every row of an epoch, in order."""
    return torch.cat([batch.numbers[:, -1] for batch, _ in stream.epoch(epoch)])


def balance(groups: torch.Tensor) -> Balance:
    return Balance(groups, quotas_of(torch.bincount(groups)))


# the order


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.integers(0, 2**32))
def test_quotas_are_met_and_rows_of_a_group_come_equally_often(groups, seed):
    there = torch.tensor(groups)
    draws = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(there), generator=draws)
    quotas = quotas_of(torch.bincount(there, minlength=6))
    taken = evened(order, there[order], quotas, draws)
    assert len(taken) == len(there) and int(quotas.max() - quotas[quotas > 0].min()) <= 1
    assert torch.equal(torch.bincount(there[taken], minlength=6), quotas)
    times = torch.bincount(taken, minlength=len(there))
    for group in set(groups):
        assert int(times[there == group].max() - times[there == group].min()) <= 1


def test_shares_lie_between_those_of_the_rows_and_equal_ones():
    counts = torch.tensor([810, 90, 0, 10])
    assert shares(counts).tolist() == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])
    assert shares(counts, 0.0).tolist() == pytest.approx([810 / 910, 90 / 910, 0, 10 / 910])
    roots = np.sqrt(counts.numpy())
    assert shares(counts, 0.5).tolist() == pytest.approx((roots / roots.sum()).tolist())
    for power in (0.1, 0.5, 1.0):
        assert int(quotas_of(counts, power).sum()) == 910 and int(quotas_of(counts, power)[2]) == 0


def test_over_epochs_all_rows_of_a_large_group_come_equally_often():
    groups = torch.cat([torch.zeros(90), torch.ones(10)]).long()
    rows = Resident(batch_of(100), 10, seed=3, balance=balance(groups))
    times = torch.stack([torch.bincount(seen(rows, epoch).long(), minlength=100) for epoch in range(200)]).sum(0)
    assert times[90:].tolist() == [1000] * 10  # 50 / 10 an epoch, exactly
    assert abs(times[:90].float().mean() - 200 * 50 / 90) < 1e-3 and times[:90].min() > 80


def batch_of(rows: int):
    from narrows.schema import Batch

    return Batch(torch.arange(float(rows)).unsqueeze(1), torch.zeros(rows, 0, dtype=torch.long))


def test_an_epoch_depends_on_seed_and_number_and_goes_on_where_it_stopped():
    groups = (torch.arange(100) < 90).long()
    one, other = (Resident(batch_of(100), 8, seed=5, balance=balance(groups)) for _ in range(2))
    assert torch.equal(seen(one, 2), seen(other, 2)) and not torch.equal(seen(one, 2), seen(one, 3))
    rest = torch.cat([batch.numbers[:, -1] for batch, _ in one.epoch(2, {"batch": 4})])
    assert torch.equal(rest, seen(one, 2)[32:])


def test_two_processes_have_the_batches_of_one(monkeypatch):
    groups = (torch.arange(100) < 90).long()
    whole = [batch.numbers[:, 0] for batch, _ in Resident(batch_of(100), 8, 1, balance=balance(groups)).epoch(1)]
    parts = []
    for rank in range(2):
        monkeypatch.setattr("narrows.train.resident.size", lambda: 2)
        monkeypatch.setattr(world, "size", lambda: 2)
        monkeypatch.setattr(world, "rank", lambda rank=rank: rank)
        own = Resident(batch_of(100), 8, 1, balance=balance(groups))
        parts.append([batch.numbers[:, 0] for batch, _ in own.epoch(1)])
    for batch, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(batch, torch.cat([first, second]))


@pytest.mark.parametrize("budget", [2e9, 0.0])
def test_each_value_is_met_equally_often_in_memory_and_streamed(budget, tmp_path):
    path = tmp_path / "uneven.parquet"
    frame = uneven(6000)
    pq.write_table(pa.Table.from_pandas(frame), path, row_group_size=500)
    training = Training(balance="kind", budget=budget, batch_size=64)
    rows = Rows(open_source(path), 0.2, training, 0)
    assert rows.resident == bool(budget)
    stream, held = rows.streams(CPU)
    levels = rows.preparer.layouts["kind"].values.to_pylist()
    for epoch in range(2):
        codes = torch.cat([batch.codes[:, 0] for batch, _ in stream.epoch(epoch)])
        counts = torch.bincount(codes, minlength=3).tolist()
        off = 1 if budget else 2  # a window rounds by chance
        assert max(counts) - min(counts) <= off and abs(len(codes) - rows.count) <= 3 * off
    again = torch.cat([batch.codes[:, 0] for batch, _ in stream.epoch(1)])
    assert torch.equal(again, codes)
    weight = held.batch.weights()
    totals = [float(weight[held.batch.codes[:, 0] == levels.index(kind)].sum()) for kind in SHARES]
    shares = torch.tensor(totals) / sum(totals)  # held-out rows count alike, as far as chance put them there
    assert float(shares.min()) > 0.2 and len(weight.unique()) == 3


def test_weights_of_rows_stay_with_them():
    frame = uneven(300)
    weight = np.where(frame["kind"] == "few", 3.0, 1.0)
    rows = Rows(open_source(frame), 0, Training(balance="kind"), 0)
    stream, _ = rows.streams(CPU, weight)
    few = rows.preparer.layouts["kind"].values.to_pylist().index("few")
    for batch, _ in stream.epoch(0):
        assert torch.equal(batch.weights(), torch.where(batch.codes[:, 0] == few, 3.0, 1.0))
    model = fit(frame, Plan(latent=2, epochs=1, training=Training(balance="kind")), weight=weight)
    assert model.facts["settings"]["balance"] == "kind"


def test_missing_values_are_a_group_of_their_own():
    frame = uneven(300)
    frame.loc[:9, "kind"] = None
    groups = Groups("kind")
    groups.add(pa.RecordBatch.from_pandas(frame, preserve_index=False))
    groups.settle()
    assert list(groups.counts)[-1] is None and groups.counts[None] == 10
    rates = dict(zip(groups.counts, groups.rates.tolist(), strict=False))
    assert all(rates[label] * count == pytest.approx(300 / 4) for label, count in groups.counts.items())
    new = pa.RecordBatch.from_pydict({"kind": ["few", "never", None]})
    assert groups.rates[groups.of(new)].tolist() == [rates["few"], 1.0, rates[None]]


def test_labels_are_text_and_nan_is_missing():
    rows = pa.RecordBatch.from_pydict(
        {"x": [1.0, float("nan"), None, 1.0], "d": pa.array(list("abab")).dictionary_encode()}
    )
    labels, codes = labels_of(rows, "x")
    assert [labels[code] for code in codes] == ["1.0", None, None, "1.0"]
    assert labels_of(rows, "d")[0] == ["a", "b"]


# what is refused


BAD = {
    "nothing": (r"no column 'nothing' to group by; wanted: one of kind, x, y, id", lambda frame: frame),
    "kind": (
        r"balance by column 'kind', which has one value, 'many', in the training rows",
        lambda f: f.assign(kind="many"),
    ),
    "id": (r"groups by column 'id', which has more than 1,000 values; .* numbers in ranges", lambda frame: frame),
    "y": (r"'y', which has no value at all in the training rows", lambda frame: frame.assign(y=np.nan)),
}


@pytest.mark.parametrize("column", BAD)
def test_columns_that_cannot_be_balanced_are_refused_in_a_sentence(column):
    sentence, change = BAD[column]
    with pytest.raises(DataError, match=sentence):
        fit(change(uneven(1500)), Plan(latent=1, epochs=1, training=Training(balance=column)))


def test_images_are_no_groups_and_ordinary_rows_are_not_balanced():
    with pytest.raises(DataError, match=r"groups by column 'x' of type .*; wanted: a column of single values"):
        fit(np.zeros((30, 4, 4)), Plan(latent=1, training=Training(balance="x")))
    purpose = purpose_of("detect")
    plan = purpose.settle(Plan(latent=1, epochs=1, training=Training(balance="kind")))
    with pytest.raises(SettingError, match="balance by column 'kind' where the most ordinary rows are trained on"):
        fit(uneven(300), plan, learn=purpose.learn, core=purpose.core)


def test_rows_that_come_again_and_again_are_warned_of_and_power_helps():
    frame = uneven(900)
    frame.loc[3, "kind"] = "once"
    plan = Plan(latent=1, epochs=1, network=Dense(hidden=(4,)))
    with pytest.warns(FitWarning, match=r"a row of 'once' comes 225 times an epoch, .* try balance_power=0\.5"):
        fit(frame, replace(plan, training=Training(balance="kind", validation=0)))
    frame.loc[:20, "kind"] = "once"
    fit(frame, replace(plan, training=Training(balance="kind", balance_power=0.5, validation=0)))
    with pytest.raises(SettingError, match=r"balance_power=0\.5 without a column"):
        fit(frame, replace(plan, training=Training(balance_power=0.5)))


# errors by group

too_narrow = pytest.mark.filterwarnings("ignore:No better than PCA")


@pytest.fixture(scope="module")
def models():
    """Too narrow for all three lines, trained as rows come and balanced."""
    frame = uneven(1000).drop(columns="id")
    network = Dense(hidden=(6,))
    return [
        fit(
            frame,
            Plan(latent=1, network=network, epochs=20, lr=0.03, training=Training(balance=balance)),
            learn={PART: learn_baseline},
        )
        for balance in (None, "kind")
    ]


@too_narrow
def test_rare_groups_come_back_better_where_they_were_balanced(models):
    new = uneven(1500).sample(700, random_state=1).drop(columns="id")
    plain, balanced = (evaluate(model, new, groups="kind").groups for model in models)
    errors = [{group.name: group.error for group in found.groups} for found in (plain, balanced)]
    assert errors[1]["few"] < 0.7 * errors[0]["few"] and errors[1]["many"] > errors[0]["many"]
    assert plain.groups[0].name == "few" and plain.groups[0].ratio > 2
    assert "few (" in plain.sentence and "comes back worst" in plain.sentence


def test_errors_of_groups_are_those_of_their_rows_alone(models):
    model, new = models[0], uneven(900).drop(columns="id")
    new.loc[:4, "kind"] = None
    new.loc[5, "x"] = np.nan
    source = model.source(new)
    found = measure(model, source, Baseline.of(model, source), "kind")
    assert {g.name for g in found.groups.groups} == {*SHARES, "(missing)"}
    for group in found.groups.groups:
        mine = new[new["kind"].isna()] if group.name == "(missing)" else new[new["kind"] == group.name]
        alone = measure(model, model.source(mine), Baseline.of(model, source))
        assert group.rows == len(mine) and group.error == pytest.approx(alone.total.model, rel=1e-6)
        for column in alone.columns:
            assert group.columns[column.name] == pytest.approx(column.errors.model, rel=1e-5, nan_ok=True)
    assert sum(group.rows * group.error for group in found.groups.groups) == pytest.approx(900 * found.total.model)
    without = measure(model, source, Baseline.of(model, source))
    assert without.groups is None and without.total == found.total and "groups" not in without.to_json()


@too_narrow
def test_the_balanced_column_is_the_usual_one_and_another_may_stand_beside_the_model(models, tmp_path):
    new = uneven(600).drop(columns="id")
    assert evaluate(models[1], new).groups.column == "kind"
    assert evaluate(models[0], new).groups is None
    beside = new.assign(half=np.where(np.arange(600) < 300, "first", "second"))
    found = evaluate(models[1], beside, groups="half").groups
    assert [group.rows for group in found.groups] == [300, 300]
    with pytest.raises(DataError, match="no column 'halves' to group by"):
        evaluate(models[0], new, groups="halves")
    with pytest.raises(DataError, match="more than 1,000 values"):
        evaluate(models[0], uneven(1500), groups="x")
    report(models[1], new, tmp_path / "page.html")
    assert "<h3>By kind</h3>" in (tmp_path / "page.html").read_text()


@too_narrow
def test_a_loss_of_balanced_rows_is_not_compared_with_that_of_rows_as_they_come(models):
    new = uneven(600).drop(columns="id")
    assert evaluate(models[0], new).held is not None and evaluate(models[1], new).held is None


def test_the_command_line_tells_groups(tmp_path):
    model, data = tmp_path / "m.narrows", tmp_path / "new.csv"
    uneven(600).drop(columns="id").to_csv(data, index=False)
    narrows("fit", data, "--balance", "kind", "--latent", 1, "--epochs", 2, "--out", model, cwd=tmp_path)
    told = json.loads(narrows("evaluate", model, data, "--json", cwd=tmp_path).stdout)["groups"]
    assert told["column"] == "kind" and {group["name"] for group in told["groups"]} == set(SHARES)
    assert set(told["worst_group"]) == {"kind", "x", "y"}
    shown = narrows("evaluate", model, data, "--groups", "kind", cwd=tmp_path).stdout
    assert "Error by group of kind" in shown and "comes back worst" in shown
    bad = narrows("evaluate", model, data, "--groups", "town", cwd=tmp_path, code=1)
    assert "no column 'town' to group by" in bad.stderr
