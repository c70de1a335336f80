"""Images come as their pixels, in rows whose ids stay, whatever lies among them; and damage is told, never shown."""

from __future__ import annotations

import io
import itertools
import struct
import sys
import zipfile
import zlib

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from narrows.errors import DataError, DataWarning, SettingError
from narrows.sources.reading import ASIDE, KIND, Reading, fact
from narrows.sources.shuffle import Shuffle
from narrows.sources.source import PIECE_BITS, open_source

RNG = np.random.default_rng(0)


def gray(count, shape=(5, 7)):
    return RNG.integers(0, 256, (count, *shape)).astype(np.uint8)


def write(folder, images, suffix=".png", **options):
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:04d}{suffix}" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path, **options)
    return paths


def table_of(source):
    return pa.Table.from_batches([batch for _, batch in source.batches()], source.schema)


def pixels(source):
    return np.concatenate([batch.column(0).to_numpy_ndarray() for _, batch in source.batches()])


def ids(source):
    return [row + i for row, batch in source.batches() for i in range(batch.num_rows)]


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


def bytes_of(image, format="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_a_folder_is_a_row_a_file(tmp_path, shape):
    images = gray(6, shape)
    write(tmp_path / "b", images[3:])
    write(tmp_path / "a", images[:3], ".bmp")
    (tmp_path / ".hidden").touch()
    source = open_source(tmp_path)
    np.testing.assert_array_equal(pixels(source), images)
    table = table_of(source)
    assert table.column("label").to_pylist() == ["a"] * 3 + ["b"] * 3
    assert table.column("path").to_pylist()[3] == str(tmp_path / "b" / "0000.png")
    assert [fact(field, ASIDE) for field in source.schema] == ["", "1", "1"]
    assert fact(source.schema.field("image"), KIND) == "image"
    assert source.rows == 6
    assert "label" not in open_source(tmp_path / "a").schema.names
    np.testing.assert_array_equal(pixels(open_source(str(tmp_path / "*" / "*.bmp"))), images[:3])
    np.testing.assert_array_equal(pixels(open_source([tmp_path / "b" / "0001.png"])), images[4:5])


def test_many_files_come_in_pieces_and_rows_can_be_skipped(tmp_path):
    images = gray(600, (2, 3))
    write(tmp_path / "a", images)
    source = open_source(tmp_path)
    assert [source.rows_of(piece) for piece in source.pieces] == [256, 256, 88]
    assert ids(source) == [piece << PIECE_BITS | i for piece, n in enumerate([256, 256, 88]) for i in range(n)]
    for skip in (1, 87, 88, 100):
        rest = list(source.read(2, skip))
        assert sum(batch.num_rows for _, batch in rest) == max(0, 88 - skip)
        assert not rest or rest[0][0] == 2 << PIECE_BITS | skip
    (row, batch), *_ = source.read(1, 5)
    assert row == 1 << PIECE_BITS | 5
    np.testing.assert_array_equal(batch.column(0).to_numpy_ndarray()[0], images[261])


def test_large_images_come_a_few_at_a_time(tmp_path):
    images = np.broadcast_to(gray(5, (1, 1, 3)), (5, 1500, 1600, 3))  # 7.2 MB each: decoded in threads
    write(tmp_path / "a", images, ".bmp")
    source = open_source(tmp_path)
    assert [batch.num_rows for _, batch in source.batches()] == [2, 2, 1]
    np.testing.assert_array_equal(pixels(source), images)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"])
def test_every_format_gives_what_pillow_shows(tmp_path, format):
    path = tmp_path / f"a.{format.lower()}"
    Image.fromarray(gray(1, (8, 9, 3))[0]).save(path)
    with Image.open(path) as image:
        wanted = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(pixels(open_source(path))[0], wanted)
    other = path.rename(tmp_path / "bare")  # told by its first bytes
    np.testing.assert_array_equal(pixels(open_source(other))[0], wanted)


def test_modes_become_eight_bits_of_gray_or_color(tmp_path):
    image = gray(1)[0]
    shown = Image.fromarray(image)
    alpha = gray(1)[0]
    on_white = np.rint((image.astype(float) * alpha + 255.0 * (255 - alpha)) / 255)
    with_alpha = shown.copy()
    with_alpha.putalpha(Image.fromarray(alpha))
    clear = shown.convert("RGB").quantize(colors=256)
    cases = {
        "one.png": (shown.convert("1"), np.asarray(shown.convert("1")) * 255.0, 0),
        "palette.gif": (shown, image, 0),
        "palette.png": (shown.convert("P"), image, 0),
        "alpha.png": (with_alpha, on_white, 1),
        "cmyk.jpg": (shown.convert("RGB").convert("CMYK"), image, 80),
        "color.png": (with_alpha.convert("RGBA"), on_white, 1),
        "quantized.bmp": (clear, image, 8),
    }
    for name, (made, wanted, off) in cases.items():
        made.save(tmp_path / name)
        found = pixels(open_source(tmp_path / name))[0]
        assert (found.ndim == 3) == (name in ("cmyk.jpg", "color.png")), name
        wanted = wanted[..., None] if found.ndim == 3 else wanted
        assert np.abs(found.astype(float) - wanted).max() <= off, name


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_read_as_eight_aloud(tmp_path, suffix):
    deep = RNG.integers(0, 1 << 16, (4, 5)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
    with pytest.warns(DataWarning, match=r"1 images have 16 bits .*a\."):
        source = open_source(tmp_path)
    np.testing.assert_array_equal(pixels(source)[0], np.floor(deep / 257 + 0.5))


def test_values_without_bounds_are_refused(tmp_path):
    Image.fromarray(np.ones((3, 3), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a.tif has 32-bit values.*try: an .npy file"):
        open_source(tmp_path)


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["png", "tiff", "webp"])
def test_orientation_is_honored(tmp_path, orientation, format):
    image, exif = gray(1)[0], Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "webp" else {}
    Image.fromarray(image).save(tmp_path / f"a.{format}", exif=exif, **options)
    found = pixels(open_source(tmp_path, reading=Reading(channels=1)))[0]
    np.testing.assert_array_equal(found, TURNS[orientation](image))


def test_mixed_sizes_are_refused_unless_scaled(tmp_path):
    write(tmp_path / "a", gray(2))
    write(tmp_path / "b", [np.full((40, 30), 200, np.uint8)])
    with pytest.raises(DataError, match=r"b.0000.png has 40 x 30 pixels; wanted: 5 x 7, as .*a.0000.png; try:.*--size"):
        open_source(tmp_path)
    source = open_source(tmp_path, reading=Reading(size=(8, 6)))
    assert pixels(source).shape == (3, 8, 6)
    assert (pixels(source)[2] == 200).all()
    checks = np.indices((64, 64)).sum(0) % 2 * 255  # finer than the result can show: antialiased to gray
    write(tmp_path / "c", [checks.astype(np.uint8)])
    small = pixels(open_source(tmp_path / "c", reading=Reading(size=(8, 8))))
    assert np.abs(small - 127.5).max() < 3


def test_a_photograph_shrinks_as_its_pixels_do(tmp_path):
    smooth = np.outer(np.linspace(0, 255, 400), np.linspace(0, 1, 300)).astype(np.uint8)
    write(tmp_path / "a", [smooth], ".jpg", quality=95)
    found = pixels(open_source(tmp_path, reading=Reading(size=(20, 15))))[0]
    assert np.abs(found - smooth.reshape(20, 20, 15, 20).mean((1, 3))).max() < 3


def test_a_model_reads_new_images_in_as_many_channels(tmp_path):
    write(tmp_path / "gray", gray(2))
    write(tmp_path / "color", gray(2, (5, 7, 3)))
    trained = open_source(tmp_path / "gray").reading
    assert trained.kept() == {"channels": 1}
    found = pixels(open_source(tmp_path / "color", reading=trained))
    luma = pixels(open_source(tmp_path / "color")).astype(float) @ [0.299, 0.587, 0.114]
    assert np.abs(found - luma).max() <= 1
    colored = open_source(tmp_path, reading=Reading(strict=True))
    assert colored.reading == Reading(strict=True, channels=3)
    assert pixels(open_source(tmp_path / "gray", reading=colored.reading)).shape == (2, 5, 7, 3)
    with pytest.raises(SettingError, match=r"channels=2; wanted: 1 \(gray\) or 3"):
        open_source(tmp_path, reading=Reading(channels=2))


# --- broken ones among good ones


def broken_folder(folder, count=40):
    """A folder whose images 3 and 11 have no header, and 7 and 8 no whole pixels."""
    images = gray(count)
    paths = write(folder, images)
    paths[3].write_bytes(b"")
    paths[11].write_bytes(b"no image")
    for place in (7, 8):
        paths[place].write_bytes(paths[place].read_bytes()[:-30])
    return images


def test_broken_images_are_left_out_and_counted(tmp_path):
    images = broken_folder(tmp_path / "a")
    with pytest.warns(DataWarning, match=r"2 of 40 images cannot be read and are left out, the first: .*0003.png"):
        source = open_source(tmp_path)
    with pytest.warns(DataWarning, match=r"2 of 38 images cannot be read and are left out, the first: .*0007.png"):
        found = pixels(source)
    np.testing.assert_array_equal(found, np.delete(images, [3, 7, 8, 11], axis=0))
    wanted = [i for i in range(38) if i not in (6, 7)]  # places among the files that have a header
    for _ in range(2):  # said once
        assert ids(source) == wanted
    rest = [row + i for row, batch in source.read(0, 5) for i in range(batch.num_rows)]
    assert rest == wanted[5:]
    assert ids(open_source(source)) == wanted


def test_rows_beside_broken_ones_are_shuffled_split_and_shared_alike(tmp_path):
    broken_folder(tmp_path / "a", 300)
    with pytest.warns(DataWarning, match=r"2 of 300"):
        source = open_source(tmp_path)
    with pytest.warns(DataWarning, match=r"2 of 298"):
        every = ids(source)
    shuffle = Shuffle(source, None, 0, 50)
    parts = [(batch.column("path").to_pylist(), end) for batch, end in shuffle.parts(1)]
    assert sorted(flat(paths for paths, _ in parts)) == sorted(table_of(source).column("path").to_pylist())
    for done, (_, end) in enumerate(parts):
        if end is not None and end.position is not None:
            again = flat(batch.column("path").to_pylist() for batch, _ in shuffle.parts(1, end.position))
            assert again == flat(paths for paths, _ in parts[done + 1 :])
    shards = [ids(source.shard(rank, 3)) for rank in range(3)]
    assert sorted(flat(shards)) == every


def test_strict_refuses_what_is_broken(tmp_path):
    broken_folder(tmp_path / "a")
    with pytest.raises(DataError, match=r"0003.png is no whole image"):
        open_source(tmp_path, reading=Reading(strict=True))
    for place in (3, 11):
        (tmp_path / "a" / f"{place:04d}.png").unlink()
    source = open_source(tmp_path, reading=Reading(strict=True))
    with pytest.raises(DataError, match=r"0007.png is no whole image: .*truncated"):
        pixels(source)


def test_nothing_but_broken_images_is_no_data(tmp_path):
    paths = write(tmp_path / "a", gray(3))
    for path in paths:
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"all 3 images of .* are broken"):
        table_of(open_source(tmp_path))
    for path in paths:
        path.write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"all 3 images are broken, as .*0000.png is no whole image"):
        open_source(tmp_path)
    with pytest.raises(DataError, match=r"0001.png is no whole image"):
        open_source(paths[1])


def png_claiming(width, height):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_000, 10_000), (60_000, 60_000)])
def test_bombs_are_not_unpacked(tmp_path, size):
    (tmp_path / "a.png").write_bytes(png_claiming(*size))
    with pytest.raises(DataError, match=r"a.png (claims 10000 x 10000|.*exceeds limit)"):
        open_source(tmp_path)


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    write(tmp_path / "a", gray(1))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(SettingError, match=r"pip install 'narrows\[image\]'"):
        open_source(tmp_path)


def test_mixed_kinds_in_a_folder_are_refused(tmp_path):
    write(tmp_path / "a", gray(1))
    (tmp_path / "a" / "labels.csv").write_text("a\n1\n")
    with pytest.raises(DataError, match=r"several kinds: 1 .csv, 1 .png"):
        open_source(tmp_path)


# --- archives


def zipped(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_read_as_a_folder(tmp_path, method):
    images = gray(4)
    names = ["b/1.png", "a/1.png", "a/0.png", "b/0.png"]
    members = dict(zip(names, map(bytes_of, images), strict=True))
    path = zipped(tmp_path / "all.zip", {**members, "__MACOSX/x": b"x", "a/": b""}, method)
    source = open_source(path)
    np.testing.assert_array_equal(pixels(source), images[[2, 1, 3, 0]])
    assert table_of(source).column("label").to_pylist() == ["a", "a", "b", "b"]
    assert table_of(source).column("path").to_pylist()[0] == f"{path}/a/0.png"
    np.testing.assert_array_equal(pixels(open_source(path.as_uri())), pixels(source))


def test_tables_in_a_zip_are_read_too(tmp_path):
    path = zipped(tmp_path / "t.zip", {"2.csv": "a,b\n3,y\n", "1.csv": "a,b\n1,x\n2,z\n"})
    assert table_of(open_source(path)).to_pydict() == {"a": [1, 2, 3], "b": ["x", "z", "y"]}


def test_archives_that_cannot_be_read_are_told(tmp_path):
    path = zipped(tmp_path / "a.zip", {"1.png": bytes_of(gray(1)[0])}, zipfile.ZIP_STORED)
    whole = path.read_bytes()
    at = whole.index(b"IDAT") + 5
    path.write_bytes(whole[:at] + b"xxx" + whole[at + 3 :])
    with pytest.raises(DataError, match=r"a.zip/1.png (is damaged|cannot be read)"):
        open_source(path)
    path.write_bytes(whole[:-30])
    with pytest.raises(DataError, match=r"a.zip cannot be read"):
        open_source(path)
    zipped(path, {})
    with pytest.raises(DataError, match=r"a.zip (has no files|cannot be read)"):
        open_source(path)
    zipped(path, {"1.png": b"x"}, zipfile.ZIP_LZMA)
    with pytest.raises(DataError, match=r"compressed in a way"):
        open_source(path)
    path.write_bytes(whole.replace(b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\1\0"))
    with pytest.raises(DataError, match="is encrypted"):
        open_source(path)
