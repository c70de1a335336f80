"""Codes that keep positions: which pixels a code number speaks of, by autograd's Jacobian; and what is refused."""

from math import prod

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from narrows import Conv, Dense, Network, Plan, SettingError, Training, fit, load
from narrows.model.building import build
from narrows.model.recipe import Recipe
from narrows.networks.fused import PerPosition
from narrows.schema import Batch, Column, Schema

IMAGE = Column("i", "image", "double", shape=(6, 9), width=54, grid=(6, 9, 1))
POINTWISE = Conv(channels=(5,), kernel=1, depth=2, fold=3, norm="none", spatial=True)  # 2 x 3 positions of 3 x 3 pixels


def made(latent, conv=POINTWISE, recipe="plain", *columns):
    torch.manual_seed(0)
    return build(Recipe.parse(recipe), Schema(columns or (IMAGE,)), latent, Network.of(conv)).eval()


def batch_of(cells, rows=3):
    return Batch(torch.rand(rows, cells), torch.zeros(rows, 0, dtype=torch.long))


def places():
    """(54,) position that each pixel is folded into, by a loop."""
    return torch.tensor([(y // 3) * 3 + x // 3 for y in range(6) for x in range(9)])


def test_a_code_number_speaks_of_the_pixels_of_its_position_alone():
    module = made(6 * 2)
    down = torch.autograd.functional.jacobian(
        lambda x: module.encode(Batch(x[None], batch_of(1, 1).codes)).z[0, 0], torch.rand(54)
    )
    up = torch.autograd.functional.jacobian(lambda z: module.decode(z.view(1, 1, 12)).numbers()[0, 0], torch.rand(12))
    of_number = torch.arange(12) // 2  # z.view(6, 2) are the codes by position
    same = of_number[:, None] == places()
    assert torch.equal(down != 0, same)
    assert torch.equal(up.T != 0, same)


def test_the_same_map_at_every_position_and_means_before_log_variances():
    torch.manual_seed(0)
    map_ = PerPosition(6, 4, 3, parts=2)
    vector = torch.randn(5, 24)
    got = map_(vector).chunk(2, dim=-1)
    kernel = map_.linear.weight.view(6, 4, 1, 1)
    wide = F.conv2d(vector.view(5, 2, 3, 4).permute(0, 3, 1, 2), kernel, map_.linear.bias)
    for part, channels in zip(got, (wide[:, :3], wide[:, 3:]), strict=True):
        torch.testing.assert_close(part, channels.permute(0, 2, 3, 1).flatten(1))
    assert map_(vector.expand(2, 5, 24)).shape == (2, 5, 36)


def test_a_gaussian_code_by_position_has_its_own_variance_there():
    module = made(6 * 2, recipe="vae")
    x = torch.rand(54)
    for name in ("mean", "log_variance"):
        jacobian = torch.autograd.functional.jacobian(
            lambda x, name=name: getattr(module.encode(Batch(x[None], batch_of(1, 1).codes)).posterior, name)[0], x
        )
        assert torch.equal(jacobian != 0, (torch.arange(12) // 2)[:, None] == places()), name


@pytest.mark.parametrize("halvings", [(8,), (8, 8), (8, 12, 8)])
def test_stages_decide_the_positions(halvings):
    conv = Conv(channels=halvings, fold=1, spatial=True)
    sizes = {1: (6, 9), 2: (3, 5), 3: (2, 3)}[len(halvings)]
    module = made(prod(sizes), conv)
    assert module.encode(batch_of(54)).z.shape == (1, 3, prod(sizes))
    with pytest.raises(SettingError, match=f"{sizes[0]} x {sizes[1]} positions.*{prod(sizes)} or {2 * prod(sizes)}"):
        made(prod(sizes) + 1, conv)


def test_series_have_spatial_codes_too():
    series = Column("s", "series", "double", shape=(12, 2), width=24, grid=(12, 2))
    module = made(9, Conv(channels=(4,), fold=4, kernel=1, norm="none", spatial=True), "plain", series)
    up = torch.autograd.functional.jacobian(lambda z: module.decode(z.view(1, 1, 9)).numbers()[0, 0], torch.rand(9))
    assert torch.equal(up != 0, torch.arange(24)[:, None] // 8 == torch.arange(9) // 3)


def test_what_is_refused():
    with pytest.raises(SettingError, match="and 1 more"):
        made(6, POINTWISE, "plain", IMAGE, Column("pay", "number", "double"))
    ragged = Column("s", "series", "list<double>", width=13, grid=(12, 1), holes=True)
    with pytest.raises(SettingError, match="lie in no grid"):
        made(4, POINTWISE, "plain", ragged)
    net = Network("conv", Dense(hidden=(8,)), POINTWISE)
    with pytest.raises(SettingError, match="hidden"):
        build(Recipe.parse("plain"), Schema((IMAGE,)), 6, net)


def test_an_overcomplete_spatial_code_learns_to_denoise_and_survives_its_file(tmp_path):
    draw = np.random.default_rng(0)
    clean = np.cumsum(draw.normal(0, 0.05, (600, 8, 8)), axis=2) + 0.5
    clean = clean.clip(0, 1).astype(np.float32)
    conv = Conv(channels=(16,), depth=1, fold=2, norm="none", spatial=True)
    plan = Plan("denoising:noise=0.1,mask=0", 16 * 16, conv, Training(batch_size=64), epochs=15)
    model = fit(clean[:500], plan)
    noisy = (clean[500:] + draw.normal(0, 0.1, (100, 8, 8))).astype(np.float32)
    told = model.reconstruct(noisy).column(0).combine_chunks().to_numpy_ndarray()
    assert np.square(told - clean[500:]).mean() < 0.5 * 0.1**2
    model.save(tmp_path / "m.narrows")
    again = load(tmp_path / "m.narrows")
    assert again.network.columns["x"] == conv
    np.testing.assert_array_equal(again.encode(noisy), model.encode(noisy))
