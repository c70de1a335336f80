"""Optimizers against torch's own, schedules against theirs, and what each optimizer may touch."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from narrows import Dense, Plan, fit
from narrows.errors import SettingError
from narrows.networks.dense import MemberLinear
from narrows.train import muon
from narrows.train.fused import FusedAdam, FusedSGD
from narrows.train.loop import train
from narrows.train.muon import NEWTON_SCHULZ, Muon, blocks, orthogonal
from narrows.train.optimizers import (
    DEFAULT_RATES,
    WARM_UP,
    clip,
    default_rate,
    half_way,
    make_optimizer,
    rate_share,
    settled,
)
from narrows.train.resident import Resident
from narrows.train.settings import Training
from small_run import rows_of_rank, small_module

PEERS = {
    "gd": lambda weights: torch.optim.SGD(weights, lr=0.02, foreach=False),
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.02, foreach=False),
    "momentum": lambda weights: torch.optim.SGD(weights, lr=0.02, momentum=0.9, foreach=False),
    "adam": lambda weights: torch.optim.Adam(weights, lr=0.02, foreach=False),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.02, weight_decay=0.0, foreach=False),
}


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(7, 20), nn.Tanh(), nn.Linear(20, 5))


def pulls(count: int = 6) -> list[torch.Tensor]:
    return list(torch.randn(count, 30, 7, generator=torch.Generator().manual_seed(4)))


def descend(net: nn.Module, step) -> list[torch.Tensor]:
    for inputs in pulls():
        net(inputs).square().sum().backward()
        step()
        net.zero_grad()
    return [weight.detach() for weight in net.parameters()]


@pytest.mark.parametrize("name", PEERS)
def test_steps_are_those_of_torch(name):
    ours, theirs = network(), network()
    optimizer, peer = make_optimizer(ours, Training(optimizer=name)), PEERS[name](theirs.parameters())
    for mine, other in zip(
        descend(ours, lambda: optimizer.step(0.02)), descend(theirs, lambda: peer.step()), strict=True
    ):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("fused", "plain", "settings"),
    [
        (FusedAdam, torch.optim.AdamW, {"betas": (0.5, 0.99)}),
        (FusedSGD, torch.optim.SGD, {}),
        (FusedSGD, torch.optim.SGD, {"momentum": 0.9}),
    ],
)
def test_fused_optimizers_are_those_of_torch_bit_for_bit(fused, plain, settings, decay):
    ours, theirs = network(), network()
    optimizer = fused(ours.parameters(), lr=0.02, weight_decay=decay, **settings)
    peer = plain(theirs.parameters(), lr=0.02, weight_decay=decay, fused=True, **settings)
    for net in (ours, theirs):
        net[0].weight.requires_grad = False  # without a gradient, to be left alone
    pairs = zip(descend(ours, optimizer.step), descend(theirs, peer.step), strict=True)
    assert all(torch.equal(mine, other) for mine, other in pairs)
    states = zip(optimizer.state.values(), peer.state.values(), strict=False)  # torch keeps empty ones of plain descent
    assert all(torch.equal(mine[name], other[name]) for mine, other in states for name in other)
    assert len(optimizer.state) == (3 if settings else 0)


def straightened(matrix: torch.Tensor) -> torch.Tensor:
    """What `orthogonal` is to give, by the singular values."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.pow(4).sum().pow(0.25)
    for _ in range(NEWTON_SCHULZ):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return (left * values) @ right


def test_muon_straightens_averaged_gradients_of_matrices_and_adamw_moves_the_rest():
    ours, theirs = network(), network()
    optimizer = make_optimizer(ours, Training(optimizer="muon", weight_decay=0.1))
    matrices = {weight: torch.zeros_like(weight) for weight in theirs.parameters() if weight.ndim == 2}
    rest = torch.optim.AdamW([w for w in theirs.parameters() if w.ndim == 1], lr=0.02, weight_decay=0.0)

    def by_hand() -> None:
        for weight, average in matrices.items():
            average.mul_(0.95).add_(weight.grad, alpha=0.05)
            update = straightened(0.05 * weight.grad + 0.95 * average)
            weight.data = weight.data * (1 - 0.02 * 0.1) - 0.02 * 0.2 * max(weight.shape) ** 0.5 * update.float()
        rest.step()

    stepped = zip(descend(ours, lambda: optimizer.step(0.02)), descend(theirs, by_hand), strict=True)
    for mine, other in stepped:
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def test_a_layer_and_its_mirror_image_move_alike():
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 9, generator=draw)
    pair = [nn.Parameter(weight.clone()), nn.Parameter(weight.T.clone())]
    muon = Muon(pair)
    muon.param_groups[0]["lr"] = 0.1
    pair[0].grad = torch.randn(6, 9, generator=draw)
    pair[1].grad = pair[0].grad.T.clone()
    muon.step()
    torch.testing.assert_close(pair[0].detach(), pair[1].detach().T)
    assert not torch.equal(pair[0], weight)


@pytest.mark.parametrize("shape", [(5, 7, 20), (5, 20, 7), (1, 4, 4), (3, 1, 6), (2, 150, 130)])
def test_a_muon_step_on_stacked_matrices_is_a_step_on_each(shape):
    draw = torch.Generator().manual_seed(0)
    stacked = nn.Parameter(torch.randn(shape, generator=draw))
    each = [nn.Parameter(matrix.T.clone()) for matrix in stacked.detach()]  # as nn.Linear keeps them
    together, alone = Muon([stacked], 0.1), Muon(each, 0.1)
    for group in (*together.param_groups, *alone.param_groups):
        group["lr"] = 0.1
    for scale in (1.0, 1e-3, 10.0):
        stacked.grad = scale * torch.randn(shape, generator=draw)
        stacked.grad[0] *= 100  # a norm for each
        for matrix, gradient in zip(each, stacked.grad, strict=True):
            matrix.grad = gradient.T.clone()
        together.step()
        alone.step()
    torch.testing.assert_close(stacked.detach(), torch.stack([m.detach().T for m in each]), atol=1e-3, rtol=1e-3)


def close(found):
    """How far off rounding may be: larger matrices are multiplied in bfloat16 where the processor has it."""
    return 1e-3 if found.dtype == torch.float32 else 3e-2


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 150), columns=st.integers(1, 150), seed=st.integers(0, 1000))
def test_orthogonal_maps_the_singular_values_and_nothing_else(rows, columns, seed):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = orthogonal(matrix.float())
    torch.testing.assert_close(found.double(), straightened(matrix), atol=close(found), rtol=1e-3)


@pytest.mark.parametrize(
    ("rows", "columns", "rank"),
    [(60, 90, 3), (60, 90, 40), (300, 240, 3), (300, 240, 150), (40, 300, 3), (400, 64, 50)],
)
def test_orthogonal_brings_singular_values_near_one(rows, columns, rank):
    draw = torch.Generator().manual_seed(0)
    matrix = torch.randn(rows, rank, generator=draw) @ torch.randn(rank, columns, generator=draw)
    found = orthogonal(matrix)
    values = torch.linalg.svdvals(found.float())[:rank]
    assert values.min() > 0.4 and values.max() < 1.3
    torch.testing.assert_close(found.double(), straightened(matrix), atol=close(found), rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e-6, 1e6, 1e12])
@pytest.mark.parametrize("shape", [(60, 90), (30, 300)])
def test_orthogonal_minds_no_scale_and_lengthens_nothing(shape, scale):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found, whole = orthogonal(matrix * scale), orthogonal(matrix)
    if scale > 1e-7:
        torch.testing.assert_close(found, whole, atol=close(found), rtol=1e-3)
    else:
        assert torch.linalg.matrix_norm(found, ord=2) < 1.3 and found.isfinite().all()


def test_blocks_are_even_where_they_can_be():
    assert [blocks(rows) for rows in (1, 200, 201, 500, 512, 1000, 509)] == [1, 1, 3, 4, 4, 5, 3]


@pytest.mark.parametrize("shape", [(30, 50), (30, 90), (400, 850)])  # the last two in the product that straightens
def test_large_matrices_move_apart_as_they_would_together(shape, monkeypatch):
    moved = []
    for large in (1, 1 << 40):
        monkeypatch.setattr(muon, "LARGE", large)
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(s, generator=generator).requires_grad_() for s in (shape, shape[::-1])]
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer = Muon(weights, 0.1)
        optimizer.param_groups[0]["lr"] = 0.1
        optimizer.step()
        moved.append([weight.detach() for weight in weights])
    for apart, together in zip(*moved, strict=True):
        torch.testing.assert_close(apart, together)


@pytest.mark.parametrize(("optimizer", "decay"), [("auto", 0.03), ("muon", 0.03), ("adamw", 0.0), ("sgd", 0.0)])
def test_muon_alone_decays_weights_unless_told_otherwise(optimizer, decay):
    layer = nn.Linear(20, 20)
    assert settled(Training(optimizer=optimizer), layer, 32).weight_decay == decay
    assert settled(Training(optimizer=optimizer, weight_decay=0.5), layer, 32).weight_decay == 0.5
    assert make_optimizer(layer, Training(optimizer="muon")).parts[0].param_groups[0]["weight_decay"] == 0.03


def test_orthogonal_of_nothing_is_nothing():
    assert not orthogonal(torch.zeros(3, 5)).any()


@pytest.mark.parametrize(
    ("shape", "parts"), [((200, 300), [200]), ((450, 451), [150] * 3), ((401, 500), [134, 134, 133])]
)
def test_muon_makes_large_matrices_orthogonal_in_blocks_no_longer_than_whole(shape, parts):
    gradient = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    layer = nn.Linear(shape[1], shape[0], bias=False)
    weight = nn.init.zeros_(layer.weight)
    optimizer = make_optimizer(layer, Training(optimizer="muon", weight_decay=0))
    weight.grad = gradient.clone()
    optimizer.step(1.0)
    whole = 0.2 * max(shape) ** 0.5  # length of each direction of a step that is not cut in blocks
    wanted = torch.cat([straightened(block.double()) for block in gradient.split(parts)]) / len(parts) ** 0.5
    torch.testing.assert_close(-weight.detach().double() / whole, wanted, atol=3e-2, rtol=1e-3)
    assert torch.linalg.matrix_norm(weight.detach() / whole, ord=2) < 1.3


class Mixed(nn.Module):
    """A weight of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.dense = nn.Embedding(9, 4), nn.Linear(4, 6)
        self.members, self.filters = MemberLinear(4, 3, 2), nn.Conv1d(4, 3, 2)
        self.scale = nn.Parameter(torch.ones(2, 1, 6))  # of two members
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)


def test_muon_takes_matrices_only_and_decay_leaves_vectors_alone():
    module = Mixed()
    optimizer = make_optimizer(module, Training(optimizer="muon", weight_decay=0.5))
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    for weight in optimizer.weights:
        weight.grad = torch.zeros_like(weight)
    optimizer.step(0.1)
    kinds = {name.split("|")[0]: name.split("|")[1] for name in optimizer.tensors()}
    assert kinds == {
        "dense.weight": "average",
        "words.weight": "exp_avg_sq",
        "members.weight": "average",
        "members.bias": "exp_avg_sq",
        "filters.weight": "average",
        "filters.bias": "exp_avg_sq",
        "scale": "exp_avg_sq",
        "dense.bias": "exp_avg_sq",
    }
    for name, weight in module.named_parameters():
        shrunk = 1.0 if name.endswith("bias") or name in ("scale", "frozen") else 0.95
        torch.testing.assert_close(weight.detach(), shrunk * before[name])


def test_auto_is_muon_unless_its_work_dwarfs_a_step():
    def chosen(inputs, rows, **settings):
        module = nn.Sequential(nn.Linear(inputs, 1024), nn.SiLU(), nn.Linear(1024, 512))
        return settled(Training(**settings), module, rows).optimizer

    assert [chosen(784, 512), chosen(3840, 8), chosen(3840, 64)] == ["muon", "adamw", "muon"]
    assert chosen(3840, 8, optimizer="muon") == "muon" and chosen(784, 512, optimizer="sgd") == "sgd"


def test_muon_is_slower_where_a_step_has_few_rows_for_a_large_matrix():
    wide, narrow = nn.Linear(800, 30), nn.Linear(10, 100)
    full = DEFAULT_RATES["muon"]
    assert default_rate("muon", wide, 200) == default_rate("muon", wide, 1000) == full
    assert default_rate("muon", wide, 50) == pytest.approx(full / 2)
    assert default_rate("muon", wide, 64) == 0.0113  # 0.02 times the root of 4 * 64 / 800, in three digits
    assert default_rate("muon", wide, 50, uses={wide.weight: 4}) == full  # as often as 200 rows
    assert default_rate("muon", narrow, 25) == full
    assert default_rate("muon", nn.Sequential(narrow, wide), 50) == pytest.approx(full / 2)  # the largest decides
    assert default_rate("adamw", wide, 2) == DEFAULT_RATES["adamw"]
    assert default_rate("muon", nn.BatchNorm1d(900), 2) == full  # no matrix


def test_a_fit_of_few_rows_and_many_columns_takes_the_slower_rate_and_says_so():
    rows = np.random.default_rng(0).normal(size=(400, 512)).astype(np.float32)
    settings = {"latent": 2, "network": Dense((8,)), "training": Training(optimizer="muon"), "epochs": 1}
    model = fit(rows, Plan(**settings))
    assert model.facts["settings"]["batch_size"] == 32
    assert model.facts["settings"]["lr"] == pytest.approx(DEFAULT_RATES["muon"] / 2)
    assert model.facts["records"][0]["lr"] <= DEFAULT_RATES["muon"] / 2
    assert fit(rows, Plan(lr=0.03, **settings)).facts["settings"]["lr"] == 0.03


def test_a_module_with_nothing_to_train_is_refused():
    with pytest.raises(SettingError, match="without weights"):
        make_optimizer(nn.ReLU(), Training())


@pytest.mark.parametrize("name", DEFAULT_RATES)
def test_state_taken_over_goes_on_identically(name):
    ours, other = network(), network()
    first, second = (make_optimizer(net, Training(optimizer=name, weight_decay=0.01)) for net in (ours, other))
    descend(ours, lambda: first.step(0.01))
    other.load_state_dict(ours.state_dict())
    second.load({key: value.clone() for key, value in first.tensors().items()})
    first_weights, second_weights = (
        descend(net, lambda opt=opt: opt.step(0.01)) for net, opt in ((ours, first), (other, second))
    )
    assert all(torch.equal(one, two) for one, two in zip(first_weights, second_weights, strict=True))


@pytest.mark.parametrize("name", DEFAULT_RATES)
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_default_rates_learn_whatever_the_scale_of_the_data(name, scale):
    rows, module = rows_of_rank(600, rank=3), small_module(latent=4)
    rows.numbers.mul_(scale)
    training = Training(optimizer=name)
    history = train(module, Resident(rows, training.step_rows(600)), None, training, epochs=60 if name == "gd" else 15)
    spread = rows.numbers.var(0, unbiased=False).sum().item()
    assert history.records[-1]["loss"] < (0.75 if name in ("gd", "sgd") else 0.4) * spread * (scale if scale > 1 else 1)


@given(done=st.floats(0, 1), schedule=st.sampled_from(["constant", "cosine", "one-cycle"]))
def test_rates_are_shares_and_half_way_is_where_they_fall_below_half(done, schedule):
    share = rate_share(schedule, done)
    assert 0 <= share <= 1
    if schedule != "constant" and done >= half_way(schedule) + 1e-9:
        assert share <= 0.5
    elif done >= WARM_UP:
        assert share > 0.5 - 1e-9


def test_cosine_is_that_of_torch():
    optimizer = torch.optim.SGD(network().parameters(), lr=1.0)
    peer = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    for step in range(50):
        assert rate_share("cosine", step / 50) == pytest.approx(peer.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        peer.step()


def test_one_cycle_warms_up_to_its_peak_and_ends_at_nothing():
    assert rate_share("one-cycle", 0) == pytest.approx(0.04)
    assert rate_share("one-cycle", WARM_UP) == 1
    assert rate_share("one-cycle", 1) == pytest.approx(0)


@pytest.mark.parametrize("limit", [0.5, 1e9, None])
def test_clip_is_that_of_torch(limit):
    weights = [nn.Parameter(torch.zeros(4, 5)), nn.Parameter(torch.zeros(3))]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    expected = [weight.grad.clone() for weight in weights]
    norm = torch.linalg.vector_norm(torch.cat([part.flatten() for part in expected])).item()
    if limit:
        torch.nn.utils.clip_grads_with_norm_(weights, 1e9, torch.tensor(norm))
        expected = [part * min(1, limit / norm) for part in expected]
    assert clip([weight.grad for weight in weights], limit) == pytest.approx(norm)
    for weight, part in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, part, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_clip_tells_of_what_is_not_finite(bad):
    assert not math.isfinite(clip([torch.tensor([1.0, bad])], 1.0))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_a_fit_does_not_import_torchs_compiler(optimizer):
    """It takes longer than a small fit; torch's optimizers import it to be left alone by it."""
    code = f"""
import sys
from small_run import small_run
small_run("{optimizer}", None, epochs=1)
assert "torch._dynamo" not in sys.modules
import torch
assert not hasattr(torch.optim.Optimizer.add_param_group.__wrapped__, "__dynamo_disable")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
