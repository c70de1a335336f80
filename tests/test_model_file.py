"""The model file: the same bytes for the same model, and a clear error or a right answer for every damaged one."""

import contextlib
import json
import random
import shutil
import struct
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from narrows import (
    Autoencoder,
    Conv,
    Dense,
    Network,
    Recurrent,
    evaluate,
    fit,
    learn_baseline,
    load,
    tensorfile,
    write_report,
)
from narrows.errors import ModelFileError, NarrowsError, SettingError
from narrows.fitting import Plan
from narrows.sources.reading import field

GOLDEN = Path(__file__).parent / "golden"


def rows(count=60):
    import pandas as pd

    generator = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "size": generator.normal(5, 2, count),
            "many": generator.integers(0, 50, count),
            "city": generator.choice(["Bern", "Oslo", "Lima"], count),
            "when": pd.date_range("2026-01-01", periods=count, freq="h"),
        }
    )


def small(recipe="vae", **plan):
    plan = {"latent": 2, "network": Dense(hidden=(6,)), "epochs": 2, **plan}
    return fit(rows(), Plan(recipe, **plan), learn={"baseline": learn_baseline})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.narrows"
    model = small()
    model.save(path)
    return path, model.score(rows())


def test_a_saved_model_answers_as_before(written):
    path, scores = written
    model = load(path)
    np.testing.assert_array_equal(model.score(rows()), scores)
    assert model.reconstruct(rows()).schema.names == ["size", "many", "city", "when"]
    again = path.with_name("again.narrows")
    model.save(again)
    assert again.read_bytes() == path.read_bytes()


def test_same_seed_and_data_twice_give_identical_files(written):
    path, _ = written
    twin = path.with_name("twin.narrows")
    small().save(twin)
    assert twin.read_bytes() == path.read_bytes()
    small(seed=1).save(twin)
    assert twin.read_bytes() != path.read_bytes()


def test_loading_leaves_the_random_state_alone(written):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    load(written[0])
    assert torch.equal(before, torch.random.get_rng_state())


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Bytes flipped, cut, doubled, swapped or overwritten; now and then a number of the header."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 8])):
        kind, at = chance.randrange(6), chance.randrange(max(len(changed), 1))
        if chance.random() < 0.6:  # the header is where structure is
            at = chance.randrange(min(len(changed), 3000) or 1)
        if kind == 0 and changed:
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            del changed[at : at + chance.randrange(1, 64)]
        elif kind == 3:
            changed[at:at] = changed[at : at + chance.randrange(1, 64)]
        elif kind == 4:
            changed[at : at + 4] = chance.randbytes(4)
        else:
            digits = [i for i, byte in enumerate(changed[:6000]) if 48 <= byte <= 57]
            if digits:
                changed[chance.choice(digits)] = 48 + chance.randrange(10)
    return bytes(changed)


def answer(path, data, scores):
    """What loading says is wrong, or None after the model gave the right scores."""
    try:
        model = load(path)
    except NarrowsError as error:
        return str(error)
    np.testing.assert_array_equal(model.score(data), scores)
    return None


def check_mutations(path, given, count, seed):
    """Half of the files are as a disk or a hand damaged them, half have wrong facts under a right checksum."""
    scores = load(path).score(given)
    data, chance, refused = path.read_bytes(), random.Random(seed), 0
    target = path.with_name("mutated.narrows")
    for _ in range(count // 2):
        target.write_bytes(mutate(data, chance))
        said = answer(target, given, scores)
        assert said is None or str(target) in said, said
        refused += said is not None
    assert refused > count * 0.45
    facts, tensors = tensorfile.read(path, "model")
    for _ in range(count // 2):
        tensorfile.write(target, "model", *lied(facts, tensors, chance))
        use(target, given)


def lied(facts, tensors, chance):
    """The facts with one value anywhere replaced, dropped or doubled, or one tensor bent."""
    facts, tensors = json.loads(json.dumps(facts)), dict(tensors)
    if chance.random() < 0.2:
        name = chance.choice(sorted(tensors))
        bends = [lambda t: t[..., :-1], lambda t: t.flatten(), lambda t: t.double(), lambda t: t * float("nan")]
        tensors[name] = chance.choice(bends)(tensors[name]) if tensors[name].ndim else tensors[name] + 1
        return facts, tensors
    here, path = facts, []
    while isinstance(here, dict | list) and len(here) and (not path or chance.random() < 0.8):
        key = chance.choice(sorted(here)) if isinstance(here, dict) else chance.randrange(len(here))
        path.append((here, key))
        here = here[key]
    place, key = path[-1]
    values = [None, -1, 0, 3, 10**18, 1.5, "x", "", [], {}, True, [1, 2], {"a": 1}, "number", "int64"]
    if chance.random() < 0.8:
        place[key] = chance.choice(values)
    elif isinstance(place, dict):
        del place[key]
    else:
        place.append(place[key])
    return facts, tensors


def use(path, given):
    """Load, and do with the model what the command line does: refused in words, or answered without a crash."""
    with contextlib.suppress(NarrowsError), warnings.catch_warnings(action="ignore"):
        model = load(path)
        model.reconstruct(given)
        evaluate(model, given)
        write_report(model, given, path.with_suffix(".html"))


@pytest.fixture
def wide(tmp_path):
    """The golden file that has every kind of column."""
    return Path(shutil.copy(GOLDEN / "format-2.narrows", tmp_path / "wide.narrows"))


def test_a_damaged_file_is_refused_or_right(written, wide):
    check_mutations(written[0], rows(), 120, seed=0)
    check_mutations(wide, wide_rows(), 80, seed=0)


@pytest.mark.slow
def test_ten_thousand_damaged_files_are_refused_or_right(written, wide):
    check_mutations(written[0], rows(), 5_000, seed=1)
    check_mutations(wide, wide_rows(), 5_000, seed=1)


def resealed(path, change):
    """The file with its facts changed and the checksum made right: what a bug or a hand would write."""
    facts, tensors = tensorfile.read(path, "model")
    change(facts, tensors)
    target = path.with_name("resealed.narrows")
    tensorfile.write(target, "model", facts, tensors)
    return target


def codes_of(facts):
    return next(column for column in facts["preparer"]["columns"] if column["levels"])


LIES = {
    "unknown recipe": lambda f, t: f["recipe"].update(name="evil"),
    "recipe argument": lambda f, t: f["recipe"]["arguments"].update(beta="__import__('os')"),
    "huge latent": lambda f, t: f.update(latent=10**15),
    "negative latent": lambda f, t: f.update(latent=-1),
    "huge network": lambda f, t: f["network"]["dense"].update(hidden=[10**9, 10**9]),
    "other network": lambda f, t: f["network"]["dense"].update(hidden=[7]),
    "deep network": lambda f, t: f["network"]["dense"].update(hidden=[8] * 10**5),
    "bottomless stages": lambda f, t: f["network"].update(kind="conv", conv={"depth": 10**6}),
    "bottomless layers": lambda f, t: f["network"].update(kind="transformer", transformer={"layers": 10**6}),
    "a category of tokens": lambda f, t: codes_of(f).update(grid=[2**40]),
    "no network": lambda f, t: f.update(network=None),
    "missing preparer": lambda f, t: f.pop("preparer"),
    "extra fact": lambda f, t: f.update(code="print(1)"),
    "missing weights": lambda f, t: t.pop(next(k for k in t if k.startswith("module."))),
    "extra weights": lambda f, t: t.update({"module.extra": torch.zeros(1)}),
    "reshaped weights": lambda f, t: t.update({k: v.flatten() for k, v in t.items() if k.startswith("module.")}),
    "other dtype": lambda f, t: t.update({k: v.double() for k, v in t.items() if k.startswith("module.")}),
    "members": lambda f, t: f["network"]["dense"].update(members=10**6),
    "broken weights": lambda f, t: t.update({k: v * float("nan") for k, v in t.items() if k.startswith("module.")}),
}


@pytest.mark.parametrize("lie", LIES)
def test_facts_that_do_not_fit_are_refused_even_with_a_right_checksum(written, lie):
    with pytest.raises((ModelFileError, SettingError)):
        load(resealed(written[0], LIES[lie]))


def test_a_newer_format_is_named(written):
    data = written[0].read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    inner = json.loads(header["__metadata__"]["narrows"]) | {"format": 99}
    header["__metadata__"]["narrows"] = json.dumps(inner)
    text = json.dumps(header).encode()
    newer = written[0].with_name("newer.narrows")
    newer.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    with pytest.raises(ModelFileError, match=r"format 99.*newer version"):
        load(newer)


@pytest.mark.parametrize("content", [b"", b"x", b"\x00" * 100, b"\xff" * 100, b"PK\x03\x04" + b"0" * 50])
def test_what_is_no_model_file_is_refused(tmp_path, content):
    path = tmp_path / "m.narrows"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"m\.narrows"):
        load(path)
    with pytest.raises(ModelFileError, match="no file"):
        load(tmp_path / "none.narrows")


def test_a_checkpoint_is_no_model(tmp_path):
    path = tmp_path / "c.safetensors"
    tensorfile.write(path, "checkpoint", {"a": 1}, {"w": torch.ones(2)})
    with pytest.raises(ModelFileError, match=r"checkpoint file.*model file"):
        load(path)


def test_users_own_modules_are_asked_for_and_come_back(tmp_path):
    def pair():
        return torch.nn.Linear(3, 2), torch.nn.Linear(2, 3)

    x = np.random.default_rng(0).normal(size=(40, 3))
    ae = Autoencoder(2, network=pair(), epochs=2, random_state=0).fit(x)
    ae.save(tmp_path / "own.narrows")
    with pytest.raises(SettingError, match="modules="):
        load(tmp_path / "own.narrows")
    encoder, decoder = pair()
    model = load(tmp_path / "own.narrows", modules={"encoder": encoder, "decoder": decoder})
    np.testing.assert_array_equal(model.encode(x), ae.transform(x))


def test_nowhere_to_write_leaves_nothing_behind(tmp_path):
    with pytest.raises(NarrowsError, match="nowhere"):
        small().save(tmp_path / "nowhere" / "m.narrows")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", range(1, tensorfile.FORMAT + 1))
def test_old_files_load_for_ever(number):
    """A file of every format that there ever was, with the answers it gave then."""
    golden = GOLDEN / f"format-{number}.narrows"
    expected = json.loads(golden.with_suffix(".json").read_text())
    model, data = load(golden), rows() if number == 1 else wide_rows()
    np.testing.assert_allclose(model.score(data), expected["scores"], rtol=1e-4)
    again = model.decode(model.encode(data))
    assert again.column("city").to_pylist() == expected["cities"]
    if number > 1:
        assert again.column("note").to_pylist() == expected["notes"]


def test_what_defaults_settled_is_in_the_file(tmp_path):
    """A later default must not change what a file says; so nothing that decides a shape may be left open in it."""
    model = fit(wide_rows(), Plan("plain", 2, epochs=1))
    model.save(tmp_path / "m.narrows")
    settled = load(tmp_path / "m.narrows").network
    assert settled == model.network and settled.dense.hidden is not None and settled.dense.decoder is not None
    words = {name: type(settings).__name__ for name, settings in settled.columns.items()}
    assert words == {"picture": "Conv", "wave": "Conv", "sound": "Conv", "note": "Recurrent"}
    for settings in settled.columns.values():
        assert None not in vars(settings).values()
    table = fit(rows(), Plan("plain", 2, epochs=1)).network
    assert table.kind == "dense" and table.dense.hidden and table.dense.decoder


def wide_rows(count=40):
    """Rows of every kind of column."""
    chance = np.random.default_rng(1)
    table = pa.Table.from_pandas(rows(count), preserve_index=False)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray
    sounds = tensors(chance.normal(size=(count, 8)).astype(np.float32))
    further = {
        "flag": (pa.array(chance.random(count) < 0.5), {}),
        "picture": (tensors(chance.integers(0, 256, (count, 4, 4)).astype(np.uint8)), {}),
        "wave": (pa.array([chance.normal(size=n).tolist() for n in chance.integers(2, 7, count)]), {}),
        "sound": (sounds, {"kind": "audio", "rate": 8000}),
        "note": (pa.array(chance.choice(["ab", "ba", "abba"], count)), {"kind": "tokens"}),
        "basket": (pa.array([[(item, 1.0)] for item in chance.choice(["tea", "milk"], count)], BASKET), {}),
    }
    for name, (column, facts) in further.items():
        table = table.append_column(field(name, column.type, **facts), column)
    return table


BASKET = pa.map_(pa.string(), pa.float32())


def write_golden():
    """`python tests/test_model_file.py`: a golden file of the present format, to be written once for each."""
    network = Network(
        dense=Dense(hidden=(3,)), conv=Conv(channels=(2,), fold=2), recurrent=Recurrent(units=2, bidirectional=False)
    )
    model = fit(wide_rows(), Plan("vae", 2, network, epochs=2, columns={"many": "count"}))
    path = GOLDEN / f"format-{tensorfile.FORMAT}.narrows"
    model.save(path)
    again = model.decode(model.encode(wide_rows()))
    answers = {
        "scores": model.score(wide_rows()).tolist(),
        "cities": again.column("city").to_pylist(),
        "notes": again.column("note").to_pylist(),
    }
    path.with_suffix(".json").write_text(json.dumps(answers))


if __name__ == "__main__":
    write_golden()
