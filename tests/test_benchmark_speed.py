"""What the benchmark of speed rests on: work, losses and rates against torch, its own programs; the page of results."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.utils.flop_counter import FlopCounterMode

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
DRAW = np.random.default_rng(0)


def module(name):
    return importlib.import_module(name)


@pytest.fixture(autouse=True)
def bench(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS / "programs")
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture
def timed():
    return module("timed")


def system_of(name):
    return module("seeds").SYSTEMS[name]


def peer(name, cells, timed):
    torch.manual_seed(0)
    return module("torch_fit").Autoencoder(timed.peer_settings(system_of(name), cells, 0))


@pytest.mark.parametrize("name", ["shallow-128", "deep-784", "deep-100", "descent-adam", "wide", "vae"])
def test_flops_of_a_step_and_of_an_epoch_are_those_that_torch_counts(timed, name):
    network, rows, cells = peer(name, 40, timed), torch.rand(32, 40), 40
    shapes = timed.layers(system_of(name), cells)
    with FlopCounterMode(display=False) as step:
        network.loss(rows).backward()
    with FlopCounterMode(display=False) as validation, torch.no_grad():
        network.loss(rows[:10])
    assert timed.step_flops(shapes, 32) == step.get_total_flops()
    assert timed.epoch_flops(shapes, 32, 10) == step.get_total_flops() + validation.get_total_flops()


@pytest.mark.parametrize("name", ["descent-gd", "descent-sgd", "descent-momentum"])
def test_a_peers_rate_moves_its_mean_loss_as_ours_moves_the_sum(timed, name):
    system, network, rows = system_of(name), peer(name, 30, timed), torch.rand(16, 30)
    theirs = torch.autograd.grad(network.loss(rows), network.parameters())
    sums = (network(rows)[0].sigmoid() - rows).square().sum(1).mean()
    ours = torch.autograd.grad(sums, network.parameters())
    rate = timed.peer_settings(system, 30, 0)["lr"]
    for mean_gradient, sum_gradient in zip(theirs, ours, strict=True):
        assert torch.allclose(rate * mean_gradient, system.lr * sum_gradient, rtol=1e-4, atol=1e-9)


def test_every_system_has_epochs_to_plan(timed):
    assert timed.PLANNED.keys() == module("seeds").SYSTEMS.keys()


def test_adam_keeps_its_rate_and_a_threshold_is_stated_a_cell(timed):
    assert timed.peer_settings(system_of("descent-adam"), 100, 0)["lr"] == system_of("descent-adam").lr
    assert timed.peer_settings(system_of("descent-adam"), 100, 0)["stop"] == pytest.approx(0.021)


def test_nats_are_cross_entropy_and_divergence(timed):
    rows, back = DRAW.random((7, 5)) < 0.5, DRAW.random((7, 5)) * 0.98 + 0.01
    mean, log_variance = DRAW.normal(size=(2, 7, 3))
    found = timed.judged({"back": back, "mean": mean, "log_variance": log_variance}, rows.astype(np.float32))
    posterior = Normal(torch.from_numpy(mean), torch.from_numpy(np.exp(0.5 * log_variance)))
    kl = kl_divergence(posterior, Normal(0.0, 1.0)).sum(1)
    nats = -Bernoulli(torch.from_numpy(back)).log_prob(torch.from_numpy(rows.astype(float))).sum(1)
    assert found == pytest.approx(float((nats + kl).mean()))


def test_half_of_the_mass_on_bounds_stays_finite(timed):
    back = {"back": np.array([[0.0, 1.0]]), "mean": np.zeros((1, 1)), "log_variance": np.zeros((1, 1))}
    assert np.isfinite(timed.judged(back, np.array([[1.0, 0.0]])))


def finished(program, settings, rows, folder, capsys):
    """What a program tells of a short training in this process, and what it makes of the validation rows."""
    np.savez(folder / "arrays.npz", train=rows[:150], validation=rows[150:])
    (folder / "settings.json").write_text(json.dumps(settings | {"arrays": str(folder / "arrays.npz")}))
    module(program).main(folder)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    with np.load(folder / "back.npz") as back:
        return told, dict(back)


@pytest.mark.parametrize("name", ["deep-784", "vae"])
@pytest.mark.parametrize("program", ["torch_fit", "narrows_fit"])
def test_programs_tell_the_loss_of_the_model_they_save(timed, program, name, tmp_path, capsys):
    images = (DRAW.random((200, 6, 6)) * 255).astype(np.uint8)
    system, held = system_of(name), images[150:].reshape(50, -1) / 255
    ours = program == "narrows_fit"
    settings = timed.same_settings(system, 1) if ours else timed.peer_settings(system, 36, 1)
    told, back = finished(program, settings | {"epochs": 3}, images, tmp_path, capsys)
    loss = timed.judged(back, held)
    assert told["epochs"] == 3 and told["steps"] == 3 * -(-150 // system.training["batch_size"])
    assert told["loaded"] < told["first epoch"] <= told["last epoch"] <= told["fitted"] <= told["saved"]
    stated = timed.summed(system, loss, 36) if ours else loss
    assert told["loss"] == pytest.approx(stated, rel=0.05 if name == "vae" else 1e-5)  # codes of a vae are drawn


def test_ours_stops_at_the_loss_it_was_given(timed, tmp_path, capsys):
    rows = (DRAW.random((200, 1)) * np.linspace(0.2, 1, 40)).astype(np.float32)  # one number tells all
    system = system_of("deep-100")
    target = 0.5 * timed.summed(system, float(rows[150:].var()), 40)
    told, back = finished("narrows_fit", timed.our_settings(system, 0, target, 60), rows, tmp_path, capsys)
    assert told["reason"] == "loss" and told["epochs"] < 60
    assert timed.summed(system, timed.judged(back, rows[150:]), 40) <= target * (1 + 1e-4)


def run_of(seconds, loss, **facts):
    return {
        "loss": loss,
        "whole": seconds + 5,
        "fit": seconds,
        "epoch seconds": seconds / 10,
        "steps/s": 100 / seconds,
    } | {
        "peak MB": 10 * seconds,
        "precision": "float32",
        **facts,
    }


def test_tables_of_speed_show_medians_misses_and_who_is_ahead():
    speed, tables = module("speed"), module("speed_tables")
    runs = {
        "keras": [run_of(seconds, 0.01) for seconds in (30, 10, 20)],
        "ours": [run_of(4, 0.01, reached=True), run_of(4, 0.01, reached=True), run_of(4, 0.02, reached=False)],
        "same": [run_of(5, 0.01)] * 3,
        "torch": [run_of(2, 0.01, precision="bfloat16")] * 3,
    }
    ceilings = [{"float32": 100.0, "bfloat16": 400.0}] * 3
    for found in runs.values():
        for run in found:
            run["share"] = speed.share(run, ceilings[0], flops=10**10)
    figures = speed.figures(runs)
    assert figures["fit"] == {"keras": 20, "ours": 4, "same": 5, "torch": 2}
    assert figures["share"]["same"] == 0.2 and figures["share"]["torch"] == 0.125
    facts = {"batch": 32, "reference": "keras", "runs": runs, "ceilings": ceilings, "figures": figures}
    text = tables.speed({"systems": {"shallow": facts}})
    assert "| shallow | Keras | missed in 1 of 3: 0.02 | 0.01 | 25.0 | 9.0 | - | 20.0 | 4.0 | - |" in text
    assert "| shallow | 32 | 20 | 5 (4.0) | - | **50 (0.4)** | - |" in text
    assert "| shallow | 5.0 (0.01) | 20.0 (0.01) | - | **2.0** (0.01) | - |" in text
    assert "| shallow | 50 | 40 | 200 | - | **20** | - |" in text
    assert "| shallow | 100 | 20% | 5% | - | 12% | - |" in text


def test_the_page_is_what_the_results_make():
    page = module("page")
    assert page.PAGE.read_text() == page.page(page.RESULTS)


def test_results_that_no_section_shows_are_refused(tmp_path):
    (tmp_path / "mystery.json").write_text("{}")
    with pytest.raises(SystemExit, match="without a section: mystery"):
        module("page").page(tmp_path)
