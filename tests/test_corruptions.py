"""What is done to rows in training: shares, places and draws, against ways to count them by hand."""

from math import comb

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.errors import SettingError
from narrows.model.augmentations import Binarize, Flip, Shift, augmentations
from narrows.model.building import build
from narrows.model.corruptions import GaussianNoise, Masking, PatchMasking, SaltAndPepper
from narrows.model.recipe import Recipe
from narrows.networks.choice import Network
from narrows.networks.conv import Conv
from narrows.networks.dense import Dense
from narrows.schema import Batch, Column, Schema

IMAGE = Column("image", "image", "double", shape=(6, 7, 2), width=84, grid=(6, 7, 2), bounded=True)
TABLE = Schema(
    (
        Column("pay", "number", "double"),
        Column("visits", "count", "int64"),
        Column("share", "number", "double", bounded=True),
        Column("job", "category", "string", width=0, levels=4),
    )
)


def suited(part, *columns):
    part.suit(Schema(columns) if isinstance(columns[0], Column) else columns[0])
    return part.train()


def images(rows, column=IMAGE):
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.rand(rows, column.width, generator=generator), torch.zeros(rows, 0, dtype=torch.long))


def table(rows):
    numbers = torch.tensor([[0.5, 4.0, 0.25]]).repeat(rows, 1)
    return Batch(numbers, torch.ones(rows, 1, dtype=torch.long))


def test_salt_and_pepper_lands_at_the_ends_of_each_column_as_often_as_asked():
    torch.manual_seed(0)
    part, batch = suited(SaltAndPepper(0.3), TABLE), table(20_000)
    noisy = part(batch).numbers
    pay, visits, share = noisy.T
    for cells, low, high, was in ((pay, -3.0, 3.0, 0.5), (share, 0.0, 1.0, 0.25)):
        assert set(cells.tolist()) == {low, high, was}
        assert abs((cells == low).double().mean() - 0.15) < 0.01
        assert abs((cells == high).double().mean() - 0.15) < 0.01
    assert (visits == 4.0).all()
    assert (batch.numbers == table(1).numbers).all(), "the rows that came were changed"
    assert abs(torch.corrcoef(torch.stack([(pay != 0.5).double(), (share != 0.25).double()]))[0, 1]) < 0.03


def blocks_of(sides, patch):
    """The patch of each position, by loops."""
    height, width = sides
    tall, wide = (max(1, min(patch, side // 2)) for side in sides)
    across = -(-width // wide)
    return [[(y // tall) * across + x // wide for x in range(width)] for y in range(height)]


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 3), st.integers(1, 5), st.floats(0.05, 0.95))
def test_patches_are_hidden_whole_and_by_an_exact_share(height, width, channels, patch, rate):
    grid = (height, width, channels)
    column = Column("i", "image", "double", shape=grid, width=height * width * channels, grid=grid)
    part = suited(PatchMasking(rate, patch), column)
    seen = part(images(16, column)).seen.view(16, height, width, channels)
    assert (seen == seen[..., :1]).all(), "channels of a pixel differ"
    blocks = torch.tensor(blocks_of((height, width), patch))
    count = int(blocks.max()) + 1
    hidden = min(max(1, round(rate * count)), count - 1)
    for row in seen[..., 0]:
        of_block = torch.stack([row[blocks == number].double().mean() for number in range(count)])
        assert set(of_block.tolist()) <= {0.0, 1.0}
        assert int((of_block == 0).sum()) == hidden


def test_spans_of_series_tokens_and_the_cells_between():
    torch.manual_seed(0)
    columns = (
        Column("heart", "series", "list<double>", width=21, grid=(10, 2), holes=True),  # and its length
        Column("note", "tokens", "string", width=0, levels=5, grid=(6,), holes=True),
        Column("pay", "number", "double"),
        Column("job", "category", "string", width=0, levels=3),
    )
    part, schema = suited(PatchMasking(0.5, 3), *columns), Schema(columns)
    rows = 2000
    seen = part(Batch(torch.zeros(rows, 22), torch.zeros(rows, 7, dtype=torch.long))).seen
    steps = seen[:, schema.spans["heart"]][:, :20].view(rows, 10, 2)
    assert (steps[..., 0] == steps[..., 1]).all()
    for start, stop in ((0, 3), (3, 6), (6, 9), (9, 10)):
        assert (steps[:, start:stop, 0] == steps[:, start : start + 1, 0]).all()
    assert (steps[:, [0, 3, 6, 9], 0].sum(1) == 2).all()
    note = seen[:, schema.spans["note"]]
    assert (note[:, :3].all(1) ^ note[:, 3:].all(1)).all()
    rest = torch.stack([seen[:, 20], seen[:, schema.spans["pay"].start], seen[:, schema.spans["job"].start]], dim=1)
    assert (rest.sum(1) == 1).all()  # two of the three are hidden, all pairs alike often
    assert ((rest.double().mean(0) - 1 / 3).abs() < 0.05).all()


def test_a_lone_cell_is_hidden_by_chance_and_what_was_unseen_stays_so():
    torch.manual_seed(0)
    part = suited(PatchMasking(0.75, 4), Column("pay", "number", "double"))
    batch = Batch(torch.zeros(8000, 1), torch.zeros(8000, 0, dtype=torch.long))
    assert abs(part(batch).seen.double().mean() - 0.25) < 0.02
    assert not part(batch.with_seen(torch.zeros(8000, 1, dtype=torch.bool))).seen.any()


def test_a_varied_share_is_hidden_as_often_as_the_integral_over_shares_says():
    torch.manual_seed(0)
    rows, cells, rate = 40_000, 6, 0.8
    columns = [Column(str(cell), "number", "double") for cell in range(cells)]
    part = suited(PatchMasking(rate, 1, vary=True), *columns)
    seen = part(Batch(torch.zeros(rows, cells), torch.zeros(rows, 0, dtype=torch.long))).seen
    shares = torch.linspace(0, rate, 20_001, dtype=torch.float64)
    law = torch.stack([comb(cells, k) * (shares**k * (1 - shares) ** (cells - k)).mean() for k in range(cells + 1)])
    law[-2:] = torch.stack([law[-2:].sum(), torch.zeros((), dtype=torch.float64)])  # one cell stays in any case
    found = torch.bincount((~seen).sum(1), minlength=cells + 1) / rows
    assert (found - law).abs().max() < 0.01
    assert abs((~seen).double().mean(0) - (~seen).double().mean()).max() < 0.01, "some cells are hidden more often"


def test_a_varied_share_of_a_lone_cell_and_of_each_grid():
    torch.manual_seed(0)
    lone = suited(PatchMasking(0.6, 1, vary=True), Column("pay", "number", "double"))
    batch = Batch(torch.zeros(8000, 1), torch.zeros(8000, 0, dtype=torch.long))
    assert abs(lone(batch).seen.double().mean() - 0.7) < 0.02
    image = suited(PatchMasking(0.9, 2, vary=True), IMAGE, Column("pay", "number", "double"))
    seen = image(Batch(torch.rand(2000, 85), torch.zeros(2000, 0, dtype=torch.long))).seen
    assert seen[:, :84].any(1).all(), "nothing of an image was shown"
    pixels = seen[:, :84].view(-1, 6, 7, 2)
    assert (pixels == pixels[..., :1]).all() and (pixels[:, :2, :2] == pixels[:, :1, :1]).all()


@pytest.mark.parametrize("shown", [0.0, 0.1, 1.0])
def test_shown_cells_count_as_much_as_is_said(shown):
    torch.manual_seed(0)
    columns = [Column(str(cell), "number", "double") for cell in range(5)]
    module = build(Recipe.parse(f"masked:rate=0.5,patch=1,shown={shown}"), Schema(tuple(columns)), 3, Network())
    batch = Batch(torch.randn(50, 5), torch.zeros(50, 0, dtype=torch.long))
    torch.manual_seed(1)
    nll = module(batch).nll[0]
    torch.manual_seed(1)
    view = module.corrupt(batch)
    plain = -module.decode(module.encode(view).z).log_prob(batch)[0]
    torch.testing.assert_close(nll, torch.where(view.seen, shown * plain, plain))


def test_shifts_are_those_of_padded_crops_and_reach_both_ends():
    torch.manual_seed(0)
    part, batch = suited(Shift(2), IMAGE), images(400)
    moved = part(batch).numbers.view(400, 6, 7, 2)
    padded = torch.nn.functional.pad(
        batch.numbers.view(400, 6, 7, 2).permute(0, 3, 1, 2), (2, 2, 2, 2), mode="replicate"
    ).permute(0, 2, 3, 1)
    found = set()
    for row in range(400):
        crops = {(y, x): padded[row, y : y + 6, x : x + 7] for y in range(5) for x in range(5)}
        match = [place for place, crop in crops.items() if torch.equal(crop, moved[row])]
        assert len(match) == 1
        found.add(match[0])
    assert len(found) == 25


def test_flips_take_half_of_the_images_and_masks_go_along():
    torch.manual_seed(0)
    part, batch = suited(Flip(), IMAGE), images(1000)
    seen = batch.numbers < 0.5
    flipped = part(batch.with_seen(seen))
    before, after = (b.numbers.view(-1, 6, 7, 2) for b in (batch, flipped))
    mirrored = (after == before.flip(2)).all((1, 2, 3))
    assert (mirrored ^ (after == before).all((1, 2, 3))).all()
    assert 0.45 < mirrored.double().mean() < 0.55
    assert torch.equal(flipped.seen, flipped.numbers < 0.5)


@pytest.mark.parametrize("part", [Shift(1), Flip()])
def test_validation_images_stay_where_they_are(part):
    batch = images(20)
    assert torch.equal(suited(part, IMAGE).eval()(batch).numbers, batch.numbers)


def test_binarized_cells_have_the_chance_that_they_show_and_the_rest_is_left():
    torch.manual_seed(0)
    part, batch = suited(Binarize(), TABLE), table(20_000)
    drawn = part(batch).numbers
    assert torch.equal(drawn[:, :2], batch.numbers[:, :2])
    assert set(drawn[:, 2].tolist()) == {0.0, 1.0}
    assert abs(drawn[:, 2].double().mean() - 0.25) < 0.01
    ends = torch.tensor([[0.0], [1.0]]).expand(2, 84)
    both = Batch(ends, torch.zeros(2, 0, dtype=torch.long))
    assert torch.equal(suited(Binarize(), IMAGE)(both).numbers, ends)


def test_binarized_rows_are_what_is_to_be_reconstructed_in_training_and_validation():
    torch.manual_seed(0)
    module = build(Recipe.parse("vae:augment=binarize"), Schema((IMAGE,)), 2, Network.of(Dense(hidden=(4,))))
    batch = images(50)
    for mode in (True, False):
        module.train(mode)
        torch.manual_seed(3)
        loss = module(batch)
        torch.manual_seed(3)
        binary = module.augment(batch)
        assert set(binary.numbers.unique().tolist()) == {0.0, 1.0}
        chance = module.decode(module._code_of(binary, 1).z).numbers()[0]
        torch.testing.assert_close(loss.nll[0] > 0.69314718, chance.sub(binary.numbers).abs() > 0.5)
    # a bound on binary rows; in the mean that of the gray ones, of which the cross-entropy is linear
    p = module.decode(module.encode(batch).z)
    mean = torch.stack([p.log_prob(module.augment(batch)) for _ in range(2000)]).mean(0)
    torch.testing.assert_close(mean, p.log_prob(batch), atol=0.06, rtol=0)


def test_words_of_augmentations():
    shift, flip = augmentations("shift(3)+flip")
    assert isinstance(shift, Shift) and shift.most == 3 and isinstance(flip, Flip)
    assert augmentations("") == ()
    for words in ("rotate", "flip(2)", "flip+flip", "shift()", "+"):
        with pytest.raises(SettingError, match="augment"):
            augmentations(words)
    with pytest.raises(SettingError, match="at least 1"):
        augmentations("shift(0)")
    for words in ("flip", "shift"):
        with pytest.raises(SettingError, match="without images"):
            build(Recipe.parse(f"plain:augment={words}"), TABLE, 2, Network())
    with pytest.raises(SettingError, match=r"\[0, 1\]"):
        build(Recipe.parse("vae:augment=binarize"), Schema(TABLE.columns[:1]), 2, Network())


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("denoising:noise=0,mask=0", "above 0"),
        ("denoising:salt=1", "salt"),
        ("denoising:noise=-1", "noise"),
        ("masked:rate=0", "rate"),
        ("masked:patch=0", "patch"),
    ],
)
def test_impossible_corruptions_die_at_construction(recipe, said):
    with pytest.raises(SettingError, match=said):
        Recipe.parse(recipe)


def test_recipes_fill_the_slots_as_their_arguments_say():
    slots = Recipe.parse("denoising:salt=0.1,mask=0,link=identity,augment=flip").slots()
    assert [type(part) for part in slots.corruptions] == [GaussianNoise, SaltAndPepper]
    assert [type(part) for part in slots.augmentations] == [Flip]
    assert slots.link == "identity"
    assert [type(part) for part in Recipe.parse("denoising").slots().corruptions] == [GaussianNoise, Masking]


def test_a_masked_autoencoder_fills_what_was_hidden_better_than_the_mean():
    """Stripes: any shown patch tells all the others."""
    torch.manual_seed(0)
    phases = torch.rand(512, 1, 1)
    stripes = 0.5 + 0.4 * torch.sin(2 * torch.pi * (torch.arange(8.0) / 8 + phases)).expand(512, 8, 8)
    column = Column("i", "image", "double", shape=(8, 8), width=64, grid=(8, 8, 1), bounded=True)
    batch = Batch(stripes.reshape(512, 64).contiguous(), torch.zeros(512, 0, dtype=torch.long))
    module = build(Recipe.parse("masked:rate=0.5,patch=4"), Schema((column,)), 4, Network.of(Conv(channels=(8, 16))))
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    module.train()
    for _ in range(150):
        optimizer.zero_grad()
        module(batch).total().backward()
        optimizer.step()
    module.eval()
    hidden = module.corrupt(batch)
    with torch.no_grad():
        told = module.decode(module.encode(hidden).z).numbers()[0]
    unseen = ~hidden.seen
    assert (told - batch.numbers)[unseen].square().mean() < 0.2 * batch.numbers.var()
