"""Bad images, sounds, series, texts and bags, from Python and through the command line.

Each ends in one sentence that says what came and what was wanted, with nothing half-written left behind, or in a right
answer with a warning of what was changed or left out.
"""

import json
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import soundfile
from PIL import Image

from command import narrows
from narrows import DataError, NarrowsError, Plan, SettingError, fit, load
from narrows.errors import DataWarning
from narrows.networks.dense import Dense
from narrows.sources.reading import Reading
from narrows.sources.source import open_source

RNG = np.random.default_rng(0)
BRIEF = ("--epochs", 1, "--latent", 2, "--hidden", 4, "--verbose", 0)
PLAN = Plan(latent=2, network=Dense(hidden=(4,)), epochs=1, device="cpu")
HOURS = pd.date_range("2025-01-01", periods=120, freq="h").strftime("%Y-%m-%d %H:%M:%S").tolist()
SERIES = ("--window", 10, "--stamp", "t")
LOG = ("--user", "u", "--item", "i", "--value", "n")


def images(folder, count, shape=(8, 8), first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        Image.fromarray(RNG.integers(0, 256, shape).astype(np.uint8)).save(folder / f"{number}.png")


def sounds(folder, count, samples=800, rate=8000, channels=1, first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        values = RNG.integers(-9000, 9000, (samples, channels)).astype(np.int16)
        soundfile.write(folder / f"{number}.wav", values, rate)


def series(path, stamps=HOURS, channels=("a", "b")):
    columns = {name: RNG.normal(size=len(stamps)).round(3) for name in channels}
    pd.DataFrame({"t": stamps, **columns}).to_csv(path, index=False)


def ragged(path, lengths):
    rows = [{"x": RNG.normal(size=length).round(3).tolist()} for length in lengths]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def log(**changes):
    frame = pd.DataFrame(
        {"u": RNG.integers(0, 30, 400), "i": RNG.choice(["ham", "egg", "tea"], 400), "n": RNG.integers(1, 5, 400)}
    )
    for column, value in changes.items():
        frame.loc[3, column] = value
    return frame


def bags(items=30):
    matrix = scipy.sparse.random(60, items, 0.2, "csr", random_state=0)
    matrix.data = np.ceil(5 * matrix.data)
    return matrix


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data of each kind, good and bad, and a model of each good one."""
    folder = tmp_path_factory.mktemp("wide")
    good_and_bad_images(folder)
    good_and_bad_sounds(folder)
    good_and_bad_series(folder)
    good_and_bad_texts(folder)
    good_and_bad_bags(folder)
    table = pd.DataFrame({"a": RNG.normal(size=40), "b": RNG.choice(["x", "y"], 40)})
    table.to_csv(folder / "table.csv", index=False)
    np.save(folder / "waves.npy", RNG.normal(size=(40, 64)).astype(np.float32))
    (folder / "full").mkdir()
    (folder / "full" / "mine").write_text("mine")
    for name, data, *options in MODELS:
        narrows("fit", data, *options, *BRIEF, "--out", f"{name}.narrows", cwd=folder)
    narrows("encode", "image.narrows", "good", "--out", "codes.npy", cwd=folder)
    narrows("encode", "table.narrows", "table.csv", "--out", "table.npy", cwd=folder)
    return folder


MODELS = (
    ("image", "good"),
    ("sound", "sounds", "--window", 100),
    ("whole", "sounds"),
    ("series", "series.csv", *SERIES),
    ("ragged", "ragged.jsonl"),
    ("fixed", "fixed.jsonl"),
    ("lines", "lines.txt", "--form", "text"),
    ("text", "texts.csv", "--column.text", "chars"),
    ("bag", "bags.npz"),
    ("log", "log.csv", *LOG),
    ("table", "table.csv"),
    ("wave", "waves.npy", "--column.x", "audio"),
)


def good_and_bad_images(folder):
    images(folder / "good" / "cat", 4)
    images(folder / "good" / "dog", 4)
    images(folder / "others" / "owl", 2)
    images(folder / "others" / "bat", 2)
    images(folder / "large", 3, (12, 12))
    images(folder / "sizes", 3)
    images(folder / "sizes", 2, (9, 8), first=3)
    images(folder / "modes", 2)
    images(folder / "modes", 2, (8, 8, 3), first=2)
    images(folder / "modes", 2, (8, 8, 4), first=4)
    images(folder / "broken", 6)
    whole = (folder / "broken" / "3.png").read_bytes()
    (folder / "broken" / "3.png").write_bytes(whole[:60])
    (folder / "broken" / "4.png").write_bytes(b"none")
    (folder / "empty").mkdir()


def good_and_bad_sounds(folder):
    sounds(folder / "sounds", 6)
    sounds(folder / "stereo", 3)
    sounds(folder / "stereo", 2, channels=2, first=3)
    sounds(folder / "rates", 2)
    sounds(folder / "rates", 1, rate=16000, first=2)
    sounds(folder / "fast", 2, rate=16000)
    for number, samples in enumerate((2000, 1, 0)):
        sounds(folder / "lengths", 1, samples, first=number)


def good_and_bad_series(folder):
    series(folder / "series.csv")
    series(folder / "short.csv", HOURS[:5])
    series(folder / "order.csv", [*HOURS[:5], HOURS[6], HOURS[5], *HOURS[7:]])
    series(folder / "equal.csv", [*HOURS[:5], HOURS[4], *HOURS[6:]])
    series(folder / "zones.csv", [hour + ("Z" if at > 20 else "") for at, hour in enumerate(HOURS)])
    offsets = [f"2025-01-01T{10 + hour:02}:00:00{'+01:00' if hour % 2 else 'Z'}" for hour in range(12)]
    series(folder / "offsets.csv", offsets)
    series(folder / "swapped.csv", channels=("b", "a"))
    series(folder / "more.csv", channels=("a", "b", "c"))
    ragged(folder / "ragged.jsonl", [3, 5, 4, 6, 5] * 4)
    ragged(folder / "lengths.jsonl", [20, 0, 1, 6])
    ragged(folder / "even.jsonl", [4] * 8)
    steps = [{"x": RNG.normal(size=(4, 2)).tolist()} for _ in range(20)]
    (folder / "fixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    steps[2]["x"] = steps[2]["x"][:3]
    (folder / "uneven.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    (folder / "word.jsonl").write_text('{"x": [1, 2]}\n{"x": "none"}\n')


def good_and_bad_texts(folder):
    (folder / "lines.txt").write_text("".join(f"the cat {i % 7} sat on mat {i % 5}\n" for i in range(60)))
    frame = pd.DataFrame({"text": [f"the dog {i % 7} ran" for i in range(60)], "n": range(60)})
    frame.to_csv(folder / "texts.csv", index=False)
    (folder / "bytes.txt").write_bytes(b"fine\nalso fine\nb\xffd\n")
    (folder / "bytes.csv").write_bytes(b"text,n\nfine,1\nb\xe4d,2\n")
    (folder / "bytes.jsonl").write_bytes(b'{"text": "fine", "n": 1}\n{"text": "b\xff", "n": 2}\n')
    (folder / "chinese.txt").write_text("道可道\n非常道\n", encoding="utf-8")


def good_and_bad_bags(folder):
    scipy.sparse.save_npz(folder / "bags.npz", bags())
    scipy.sparse.save_npz(folder / "wide.npz", bags(50))
    below = bags()
    below.data[3] = -1
    scipy.sparse.save_npz(folder / "below.npz", below)
    log().to_csv(folder / "log.csv", index=False)
    log(i="rum").to_csv(folder / "rum.csv", index=False)
    log(n=-2).to_csv(folder / "less.csv", index=False)
    log().drop(columns="i").to_csv(folder / "no_items.csv", index=False)


def left(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def check_refused(place, said, *words):
    """The command ends in one sentence, and leaves what was there."""
    before = left(place)
    error = narrows(*words, cwd=place, code=1).stderr
    assert re.search(said, error), error
    assert re.match(r"narrows: .+; (wanted|try): ", error.splitlines()[-1])
    assert left(place) == before


# data that no model can be trained on

UNFIT = {
    "image sizes": (("sizes",), {}, r"3.png has 9 x 8 pixels; wanted: 8 x 8, as .*0.png; try: .*--size"),
    "broken image": (("broken", "--strict"), {"strict": True}, r"4.png is no whole image: cannot identify image file;"),
    "empty folder": (("empty",), {}, "folder .*empty has no files"),
    "mixed channels": (("stereo", "--strict"), {"strict": True}, "3.wav has 2 channels, .*0.wav has 1; .*--channels 1"),
    "mixed rates": (("rates",), {}, "2.wav has 16,000 samples a second; wanted: 8,000, as .*0.wav; try: resampling"),
    "window and sounds": (("sounds", "--window", 900), {"window": 900}, "no sound has more than 800 samples; .* 900"),
    "order": (("order.csv", *SERIES), {"window": 10, "stamp": "t"}, "row 7: stamp .*05:00.* comes after .*06:00"),
    "equal": (("equal.csv", *SERIES), {"window": 10, "stamp": "t"}, "row 6: stamp .*04:00.* comes after .*04:00"),
    "zones": (("zones.csv", *SERIES), {"window": 10, "stamp": "t"}, "mix time zones: .*row 1 .*row 22 .*wanted: .*one"),
    "offsets": (("offsets.csv", *SERIES), {"window": 10, "stamp": "t"}, "row 2: stamp .* comes after"),
    "window": (("short.csv", *SERIES), {"window": 10, "stamp": "t"}, "no series has more than 5 rows; wanted: 10"),
    "bytes in text": (("bytes.txt", "--form", "text"), {"form": "text"}, "bytes.txt line 3, byte 16: 0xff is no UTF-8"),
    "bytes in JSON": (("bytes.jsonl",), {}, "bytes.jsonl line 2 is no UTF-8"),
    "negative bag": (("below.npz",), {}, "row 1, item .*: -1.0; wanted: counts or weights from 0 up"),
    "negative log": (("less.csv", *LOG), {"user": "u", "item": "i", "value": "n"}, "row 4, column 'n': -2; wanted"),
    "no items": (("no_items.csv", *LOG), {"user": "u", "item": "i", "value": "n"}, "columns u, n, and no 'i'"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_data_that_cannot_be_trained_on_is_refused(place, name):
    words, reading, said = UNFIT[name]
    check_refused(place, said, "fit", *words, *BRIEF, "--out", "none.narrows")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        with pytest.raises(NarrowsError, match=said):
            fit(open_source(place / words[0], reading=Reading(**reading)), PLAN)


@pytest.mark.parametrize("word", ["conv", "recurrent"])
def test_networks_of_grids_are_refused_for_a_table(place, word):
    check_refused(place, f"network='{word}' for rows", "fit", "table.csv", "--network", word, "--out", "none.narrows")
    with pytest.raises(SettingError, match=f"network='{word}' for rows without any"):
        fit(place / "table.csv", Plan(network=word, epochs=1))


# data that does not fit a model

MISFITS = {
    "other size": ("image", "large", r"\(12, 12\); wanted: shape \(8, 8\), as in training; try: .*--size"),
    "mixed sizes": ("image", "sizes", "3.png has 9 x 8 pixels"),
    "empty folder": ("image", "empty", "has no files"),
    "other rate": ("sound", "fast", "16000; wanted: .*8000, as in training; try: .*resampled"),
    "order": ("series", "order.csv", "order.csv row 7"),
    "short": ("series", "short.csv", "no series has more than 5 rows"),
    "other order of channels": ("series", "swapped.csv", r'"b", "a".*wanted: .*"a", "b"'),
    "more channels": ("series", "more.csv", r'channels \["a", "b", "c"\]; wanted: channels \["a", "b"\]'),
    "uneven": ("fixed", "uneven.jsonl", r"uneven.jsonl: column 'x', row 2 .*: 3 steps; wanted: 4, as in training"),
    "no channels": ("fixed", "even.jsonl", r"'x' came as list.*; wanted: shape \(4, 2\), as in training"),
    "word among lists": ("ragged", "word.jsonl", "column 'x', row 1 .*: 'none'; wanted: list"),
    "bytes": ("lines", "bytes.txt", "line 3, byte 16"),
    "bytes in JSON": ("text", "bytes.jsonl", "line 2 is no UTF-8"),
    "item beyond": ("bag", "wide.npz", "row 0 .*: item [34].; wanted: item numbers from 0 to 29, as in training"),
    "negative": ("bag", "below.npz", "row 1, item .*: -1.0"),
    "negative value": ("log", "less.csv", "row 4, column 'n': -2"),
    "no items": ("log", "no_items.csv", "columns u, n, and no 'i'"),
    "no text": ("text", "table.csv", "no column 'text', 'n': the rows have 'a', 'b'"),
    "images for series": ("series", "good", "holds image; wanted: a table of numbers"),
    "images for texts": ("text", "good", "no column 'text', 'n': the rows have 'image'"),
    "images for bags": ("bag", "good", "no column 'x': the rows have 'image'; wanted: the column of training"),
    "images for a table": ("table", "good", "no column 'a', 'b': the rows have 'image'"),
    "images for a log": ("log", "good", "holds image; wanted: a table of users and items"),
    "a table for images": ("image", "table.csv", r"rows with 'a', 'b'; wanted: column 'image' of shape \(8, 8\)"),
    "sounds for images": ("image", "sounds", r"rows with 'sound'; wanted: column 'image'"),
    "bags for images": ("image", "bags.npz", r"rows with 'x'; wanted: column 'image'"),
    "a table for sounds": ("whole", "table.csv", "no column 'sound': the rows have 'a', 'b'"),
    "texts for series": ("series", "lines.txt", "no column 't'"),
    "series for bags": ("bag", "series.csv", "no column 'x'"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_data_that_does_not_fit_a_model_is_refused(place, name):
    model, data, said = MISFITS[name]
    check_refused(place, said, "encode", f"{model}.narrows", data, "--out", "none.csv")
    check_refused(place, said, "evaluate", f"{model}.narrows", data)
    with pytest.raises(NarrowsError, match=said):
        load(place / f"{model}.narrows").encode(place / data)


def test_a_sparse_matrix_of_more_items_is_refused(place):
    model = load(place / "bag.narrows")
    with pytest.raises(DataError, match="wanted: item numbers from 0 to 29, as in training"):
        model.encode(bags(50))
    beyond = bags()
    beyond.indices[-1] = 30
    with pytest.raises(DataError, match="row 60: item 30; wanted: items from 0 to 29"):
        model.encode(beyond)
    np.testing.assert_array_equal(model.encode(bags()), model.encode(place / "bags.npz"))


# data that is changed, or left out in part, and said to be

TAKEN = {
    "broken images": ("image", "broken", 4, "2 of 6 images|1 of 6 images"),
    "modes": ("image", "modes", 6, ""),
    "other labels": ("image", "others", 4, ""),
    "stereo": ("sound", "stereo", 40, ""),
    "lengths of sounds": ("whole", "lengths", 2, "1 of 3 sounds cannot be read .*2.wav has no samples"),
    "lengths": ("ragged", "lengths.jsonl", 4, "1 of 4 series are longer than the 6 steps of training: cut"),
    "even lengths": ("ragged", "even.jsonl", 8, ""),
    "Latin-1": ("text", "bytes.csv", 2, "bytes.csv is not UTF-8 text; read as Latin-1"),
    "Chinese": ("lines", "chinese.txt", 2, "tokens not kept in training, such as '道'"),
    "unknown item": ("log", "rum.csv", 30, "items not kept in training: dropped"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_data_that_fits_in_part_is_read_with_a_warning(place, tmp_path, name):
    model, data, rows, said = TAKEN[name]
    out = tmp_path / "codes.jsonl"
    told = narrows("encode", f"{model}.narrows", data, "--out", out, cwd=place).stderr
    assert bool(told) == bool(said) and re.search(said, told), told
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        codes = load(place / f"{model}.narrows").encode(place / data)
    assert codes.shape == (rows, 2) and np.isfinite(codes).all()
    np.testing.assert_allclose(codes, [[line["z0"], line["z1"]] for line in lines], rtol=1e-6)


def test_what_is_left_out_moves_nothing_else(place, tmp_path):
    """Codes of whole images are those that they have alone; stereo is the mean of its channels."""
    model = load(place / "image.narrows")
    with pytest.warns(DataWarning, match="left out"):
        codes = model.encode(place / "broken")
    alone = [model.encode(place / "broken" / f"{number}.png")[0] for number in (0, 1, 2, 5)]
    np.testing.assert_array_equal(codes, alone)
    both, _ = soundfile.read(place / "stereo" / "3.wav", dtype="int16")
    soundfile.write(tmp_path / "mono.wav", both.mean(axis=1) / 32768, 8000, subtype="FLOAT")
    model = load(place / "sound.narrows")
    np.testing.assert_allclose(
        model.encode(place / "stereo" / "3.wav"), model.encode(tmp_path / "mono.wav"), rtol=1e-4, atol=1e-5
    )


def test_colors_become_gray_where_training_was_gray(place):
    model = load(place / "image.narrows")
    (raw, _), *_ = model.batches(place / "modes")
    with Image.open(place / "modes" / "2.png") as image:
        np.testing.assert_array_equal(raw.column("image").to_numpy_ndarray()[2], np.asarray(image.convert("L")))


def test_series_come_back_with_lengths_of_their_own(place, tmp_path):
    out = tmp_path / "back.jsonl"
    narrows("reconstruct", "ragged.narrows", "lengths.jsonl", "--out", out, cwd=place)
    back = [json.loads(line)["x"] for line in out.read_text().splitlines()]
    assert len(back) == 4 and all(len(row) <= 6 and np.isfinite(row).all() for row in back)


def test_lists_and_tensors_stand_for_each_other(place):
    """A file whose series all have one length reads as tensors where the model knows lists, and the other way round."""
    steps = np.array([json.loads(line)["x"] for line in (place / "fixed.jsonl").read_text().splitlines()])
    lists = place.parent / "both.jsonl"
    lengths = [3, 4] * 10
    rows = [{"x": row[:length].tolist()} for row, length in zip(steps, lengths, strict=True)]
    lists.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = fit(lists, PLAN)
    whole = [at for at, length in enumerate(lengths) if length == 4]
    np.testing.assert_allclose(model.encode(place / "fixed.jsonl")[whole], model.encode(lists)[whole], rtol=1e-6)
    model = load(place / "fixed.narrows")
    with_hole = place.parent / "hole.jsonl"
    with_hole.write_text("".join(json.dumps({"x": row}) + "\n" for row in [None, *steps.tolist()]))
    np.testing.assert_allclose(model.encode(with_hole)[1:], model.encode(steps), rtol=1e-6)


# where results may go


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("encode", "table.narrows", "table.csv"), "is a folder, the rows are z0 float, z1 float"),
        (("decode", "table.narrows", "table.npy"), "is a folder, the rows are a double, b string"),
        (("reconstruct", "table.narrows", "table.csv"), "is a folder, the rows are a double, b string"),
        (("reconstruct", "series.narrows", "series.csv"), "is a folder, the rows are x "),
        (("reconstruct", "bag.narrows", "bags.npz"), "is a folder, the rows are x map"),
        (("reconstruct", "wave.narrows", "waves.npy"), "'x' does not say its samples per second"),
    ],
)
def test_folders_are_refused_for_what_has_no_files_of_its_own(place, words, said):
    check_refused(place, said, *words, "--out", "folder")


@pytest.mark.parametrize(
    "words", [("encode", "image.narrows", "good"), ("decode", "image.narrows", "codes.npy"), ("reconstruct",) * 3]
)
def test_a_folder_that_is_not_empty_is_refused_before_any_work(place, words):
    """The model and data of the last case do not even exist."""
    check_refused(place, "cannot write the folder full: it is not empty", *words, "--out", "full")


def test_a_sound_without_a_rate_is_modeled_all_the_same(place, tmp_path):
    out = tmp_path / "back.npy"
    narrows("reconstruct", "wave.narrows", "waves.npy", "--out", out, cwd=place)
    assert np.load(out).shape == (40, 64)
    check_refused(
        place, "'a' cannot be of kind 'audio'", "fit", "table.csv", "--column.a", "audio", "--out", "n.narrows"
    )
