"""Networks over grids: promises that all keep, and each one's own proof against another way to compute the same."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from narrows.errors import SettingError
from narrows.networks.conv import Conv
from narrows.networks.dense import Dense
from narrows.networks.grids import Grid, folded, unfolded
from narrows.networks.recurrent import Recurrent
from narrows.networks.transformer import Attention, Transformer

INPUTS, OUTPUTS = 3, 2
SEQUENCES, IMAGES = [(1,), (2,), (9,), (70,)], [(1, 1), (7, 5), (1, 9), (16, 17)]
SMALL_CONV = Conv(channels=(8, 12), fold=2)
NETWORKS = {
    "conv": SMALL_CONV,
    "conv_default": Conv(),
    "conv_normed": replace(SMALL_CONV, norm="layer", depth=2, kernel=5, fold=1, activation="relu"),
    "gru": Recurrent(units=8),
    "lstm": Recurrent(cell="lstm", units=8, layers=2),
    "one_way": Recurrent(units=8, bidirectional=False),
    "gru_auto": Recurrent(units=8, autoregressive=True),
    "lstm_auto": Recurrent(cell="lstm", units=8, layers=3, autoregressive=True),
    "transformer": Transformer(width=8, heads=2),
    "transformer_patches": Transformer(width=8, heads=2, patch=3),
    "transformer_auto": Transformer(width=8, heads=2, autoregressive=True),
    "transformer_auto_patches": Transformer(width=8, heads=2, patch=2, autoregressive=True),
}
CASES = [
    pytest.param(network, positions, id=f"{name}-{'x'.join(map(str, positions))}")
    for name, network in NETWORKS.items()
    for positions in (SEQUENCES if isinstance(network, Recurrent) else SEQUENCES + IMAGES)
]
AUTOREGRESSIVE = [case for case in CASES if getattr(case.values[0], "autoregressive", False)]


def pair(network, positions, inputs=INPUTS, outputs=OUTPUTS):
    torch.manual_seed(0)
    return network.pair(Grid(positions, inputs, outputs))


def rows(positions, count=4, channels=INPUTS):
    return torch.randn(count, *positions, channels, generator=torch.Generator().manual_seed(1))


def some_present(positions, count=4):
    present = torch.rand(count, *positions, generator=torch.Generator().manual_seed(2)) < 0.6
    present[0] = False  # a row of nothing
    return present


def decoded(decoder, vector, targets):
    return decoder(vector, targets if decoder.autoregressive else None)


@pytest.mark.parametrize(("network", "positions"), CASES)
def test_every_network_keeps_its_promises(network, positions):
    encoder, decoder = pair(network, positions)
    x, present = rows(positions), some_present(positions)
    vector = encoder(x, present)
    outputs = decoded(decoder, torch.randn(4, decoder.width), x)
    assert vector.shape == (4, encoder.width)
    assert outputs.shape == (4, *positions, OUTPUTS)
    assert vector.isfinite().all()
    assert outputs.isfinite().all()
    assert outputs.std() > 0.01
    # rows know nothing of each other, in training neither
    torch.testing.assert_close(encoder(x[1:2], present[1:2]), vector[1:2], atol=1e-5, rtol=1e-4)
    # nothing is read where nothing is
    torch.testing.assert_close(encoder(x + 100.0 * ~present[..., None], present), vector)
    # all present is the same as no mask
    torch.testing.assert_close(encoder(x, torch.ones_like(present)), encoder(x), atol=1e-5, rtol=1e-4)
    assert encoder(x[:0]).shape == (0, encoder.width)
    assert decoded(decoder, torch.randn(0, decoder.width), x[:0]).shape == (0, *positions, OUTPUTS)


@pytest.mark.parametrize(("network", "positions"), [case for case in CASES if max(case.values[1]) > 4])
def test_a_gradient_reaches_every_weight(network, positions):
    encoder, decoder = pair(network, positions)
    x = rows(positions)
    vector = encoder(x)
    joined = torch.randn(encoder.width, decoder.width) * encoder.width**-0.5
    decoded(decoder, vector @ joined, x).square().sum().backward()
    for part in (encoder, decoder):
        for name, weight in part.named_parameters():
            assert weight.grad is not None and weight.grad.isfinite().all(), name
            assert weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("network", "positions"), [case for case in CASES if case.values[1] in [(9,), (7, 5)]])
def test_autocast_and_saved_weights_change_little_or_nothing(network, positions):
    (encoder, decoder), (other, other_decoder) = (
        pair(network, positions),
        network.pair(Grid(positions, INPUTS, OUTPUTS)),
    )
    x, vector = rows(positions), torch.randn(4, decoder.width)
    other.load_state_dict(encoder.state_dict())
    other_decoder.load_state_dict(decoder.state_dict())
    assert torch.equal(other(x), encoder(x))
    assert torch.equal(decoded(other_decoder, vector, x), decoded(decoder, vector, x))
    with torch.autocast("cpu", torch.bfloat16):
        code, outputs = encoder(x), decoded(decoder, vector, x)
    (code.float().sum() + outputs.float().sum()).backward()
    torch.testing.assert_close(code.float(), encoder(x), atol=0.1, rtol=0.1)
    torch.testing.assert_close(outputs.float(), decoded(decoder, vector, x), atol=0.1, rtol=0.1)


@pytest.mark.parametrize(("network", "positions"), AUTOREGRESSIVE)
def test_a_position_sees_only_those_before_it(network, positions):
    _, decoder = pair(network, positions)
    targets, vector = rows(positions, 1), torch.randn(1, decoder.width)
    before = decoder(vector, targets).flatten(1, -2)
    patch = getattr(network, "patch", None) or 1
    # the order in which positions are told: patch by patch
    order = folded(torch.arange(targets[..., 0].numel()).view(1, *positions, 1) + 1, patch).flatten(1, -2)[0]
    for turn, inside in enumerate(order):
        there = inside[inside > 0] - 1
        changed = targets.flatten(1, -2).clone()
        changed[:, there] += 1.0
        moved = (decoder(vector, changed.view_as(targets)).flatten(1, -2) - before).abs().amax(dim=(0, 2)) > 1e-6
        earlier = order[: turn + 1][order[: turn + 1] > 0] - 1
        assert not moved[earlier].any()
        if turn + 1 < len(order):
            following = order[turn + 1]
            assert moved[following[following > 0] - 1].any()


@pytest.mark.parametrize(("network", "positions"), AUTOREGRESSIVE)
def test_running_freely_says_what_its_own_words_as_targets_would_say(network, positions):
    _, decoder = pair(network, positions)
    vector, read = torch.randn(3, decoder.width), torch.randn(OUTPUTS, INPUTS)
    freely = decoder(vector, feedback=lambda outputs: torch.tanh(outputs @ read))
    torch.testing.assert_close(decoder(vector, torch.tanh(freely @ read)), freely, atol=1e-5, rtol=1e-4)
    with pytest.raises(TypeError, match="feedback"):
        decoder(vector)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(1, 4), st.integers(1, 3))
def test_folding_is_undone_and_keeps_neighbors_together(positions, fold, channels):
    x = torch.randn(2, *positions, channels)
    patches = folded(x, fold)
    assert torch.equal(unfolded(patches, fold, positions), x)
    assert patches.shape == (2, *(-(-n // fold) for n in positions), channels * fold ** len(positions))
    corner = x[tuple([slice(None)] + [slice(0, fold)] * len(positions))]
    first = patches[tuple([slice(None)] + [0] * len(positions))]
    torch.testing.assert_close(first.sum(1), corner.flatten(1).sum(1))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_recurrent_encoder_is_torchs_packed_one(cell):
    encoder, _ = pair(Recurrent(cell=cell, units=8), (7,))
    peer = (nn.GRU if cell == "gru" else nn.LSTM)(INPUTS, 8, batch_first=True, bidirectional=True)
    for name, weight in encoder.onwards[0].named_parameters():
        getattr(peer, name).data.copy_(weight)
        getattr(peer, f"{name}_reverse").data.copy_(dict(encoder.back[0].named_parameters())[name])
    x, lengths = rows((7,)), torch.tensor([7, 1, 4, 6])
    _, state = peer(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    hidden = state if cell == "gru" else state[0]
    expected = torch.cat([hidden[0], hidden[1]], dim=-1)
    torch.testing.assert_close(encoder(x, torch.arange(7) < lengths[:, None]), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["gru", "lstm", "one_way"])
def test_padding_changes_nothing(name):
    encoder, _ = pair(NETWORKS[name], (9,))
    x, lengths = rows((9,)), [9, 1, 4, 6]
    present = torch.arange(9) < torch.tensor(lengths)[:, None]
    for row, length in enumerate(lengths):
        cropped = encoder(x[row : row + 1, :length])
        torch.testing.assert_close(encoder(x, present)[row : row + 1], cropped, atol=1e-5, rtol=1e-4)


def test_word_dropout_hides_whole_steps_in_training_alone():
    _, decoder = pair(Recurrent(units=8, autoregressive=True, word_dropout=1.0), (9,))
    vector = torch.randn(4, decoder.width)
    assert torch.equal(decoder(vector, rows((9,))), decoder(vector, rows((9,)) * 2))
    decoder.eval()
    assert not torch.equal(decoder(vector, rows((9,))), decoder(vector, rows((9,)) * 2))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_torchs(causal):
    ours, peer = Attention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)
    peer.in_proj_weight.data = torch.cat([ours.asked.weight, ours.known.weight])
    peer.in_proj_bias.data = torch.cat([ours.asked.bias, ours.known.bias])
    peer.out_proj.load_state_dict(ours.said.state_dict())
    x, present = torch.randn(3, 5, 8), torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1]]).bool()
    if causal:
        ahead = torch.ones(5, 5).triu(1).bool()
        expected = peer(x, x, x, attn_mask=ahead)[0]
    else:
        expected = peer(x, x, x, key_padding_mask=~present)[0]
    got = ours(x, x, None if causal else present[:, None, None], causal)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_defaults_are_small():
    for network, positions, most in [
        (Conv(), (28, 28), 1_000_000),
        (Conv(), (140,), 300_000),
        (Recurrent(), (140,), 300_000),
        (Transformer(), (140,), 300_000),
        (Transformer(), (28, 28), 1_000_000),
    ]:
        weights = sum(w.numel() for part in network.pair(Grid(positions, 1, 1)) for w in part.parameters())
        assert 10_000 < weights < most, f"{network} has {weights}"


OTHER_SETTINGS = {
    "channels": (8, 16),
    "kernel": 5,
    "depth": 2,
    "fold": 1,
    "norm": "none",
    "activation": "tanh",
    "dropout": 0.5,
    "cell": "lstm",
    "units": 16,
    "layers": 3,
    "bidirectional": False,
    "autoregressive": True,
    "word_dropout": 0.5,
    "width": 16,
    "heads": 4,
    "patch": 2,
}


@pytest.mark.parametrize(
    ("base", "name"),
    [
        (base, field.name)
        for base in (
            SMALL_CONV,
            Recurrent(units=8, autoregressive=True),
            Recurrent(units=8),
            Transformer(width=8, heads=2),
        )
        for field in fields(base)
        # a decoder that reads its own words reads them one by one, and only such a one can miss some
        if field.name != ("patch" if getattr(base, "autoregressive", False) else "word_dropout")
        and field.name != "spatial"  # says what stands between the two: see test_spatial.py
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_every_setting_has_an_effect(base, name):
    value = OTHER_SETTINGS[name] if getattr(base, name) != OTHER_SETTINGS[name] else not OTHER_SETTINGS[name]

    def result(network):
        encoder, decoder = pair(network, (9,))
        torch.manual_seed(3)
        vector = torch.randn(4, 256)[:, : decoder.width]
        return encoder(rows((9,))), decoded(decoder, vector, rows((9,)))

    before, after = result(base), result(replace(base, **{name: value}))
    assert any(a.shape != b.shape or not torch.allclose(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    "network",
    [
        Conv(channels=()),
        Conv(channels=(0,)),
        Conv(kernel=4),
        Conv(depth=0),
        Conv(fold=0),
        Conv(norm="batch"),
        Conv(activation="sine"),
        Conv(dropout=1.0),
        Recurrent(cell="rnn"),
        Recurrent(units=0),
        Recurrent(layers=0),
        Recurrent(autoregressive=True, word_dropout=1.5),
        Recurrent(autoregressive=False, word_dropout=0.5),
        Transformer(width=0),
        Transformer(width=10, heads=4),
        Transformer(patch=0),
        Transformer(dropout=-0.1),
    ],
    ids=repr,
)
def test_settings_out_of_range_are_refused(network):
    with pytest.raises(SettingError):
        network.pair(Grid((8,), 1, 1))


@pytest.mark.parametrize("network", [Conv(), Recurrent()])
def test_a_grid_of_too_many_axes_is_refused(network):
    with pytest.raises(SettingError, match="axes"):
        network.pair(Grid((2, 2, 2), 1, 1))


def fall(module, x, steps, rate=1e-3):
    """What share of the squared error is left after some steps of Adam, from the first step to the last."""
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    losses = []
    for _ in range(steps):
        loss = (module(x).view_as(x) - x).square().mean() / x.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[-1]


def deep(kind, plain, blocks):
    """An autoencoder of so many blocks in each half; plain: without what makes it train."""
    torch.manual_seed(0)
    if kind == "dense":
        widths = (64,) * 2 * blocks
        return nn.Sequential(*Dense(hidden=widths, decoder=widths, residual=not plain).build(8, 8, 8, 8))
    if kind == "conv" and not plain:
        return joined(Conv(channels=(8,), depth=blocks, fold=1), (8,))
    if kind == "conv":
        inner = (layer for _ in range(4 * blocks) for layer in (nn.SiLU(), nn.Conv1d(8, 8, 3, padding=1)))
        return nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 8, 1), *inner, nn.SiLU(), nn.Conv1d(8, 1, 1))
    if not plain:
        return joined(Transformer(width=16, heads=2, layers=blocks), (8,))
    inner = (nn.TransformerEncoderLayer(16, 2, 64, dropout=0.0, batch_first=True) for _ in range(2 * blocks))
    return nn.Sequential(nn.Unflatten(1, (8, 1)), nn.Linear(1, 16), *inner, nn.Linear(16, 1))


def joined(network, positions):
    encoder, decoder = network.pair(Grid(positions, 1, 1))
    return nn.Sequential(Channel(), encoder, nn.Linear(encoder.width, decoder.width), decoder)


class Channel(nn.Module):
    """(B, T) -> (B, T, 1)"""

    def forward(self, x):
        return x[..., None]


def waves():
    """(32, 8): sines of random pitch and phase."""
    generator = torch.Generator().manual_seed(0)
    pitch, phase = torch.rand(2, 32, 1, generator=generator)
    return torch.sin(torch.arange(8.0) * pitch + 6 * phase)


@pytest.mark.parametrize("kind", ["dense", "conv", "transformer"])
def test_fifty_layers_train_where_a_plain_stack_does_not(kind):
    plain, ours = (fall(deep(kind, plain, blocks=25), waves(), steps=30) for plain in (True, False))
    assert plain > 0.7
    assert ours < 0.4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "conv", "transformer"])
def test_fifty_blocks_a_half_train_to_the_end(kind):
    plain, ours = (fall(deep(kind, plain, blocks=50), waves(), steps=500) for plain in (True, False))
    assert plain > 0.3
    assert ours < 0.05
