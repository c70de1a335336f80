"""Every format reads through pyarrow's file systems alone, and what cannot be reached is told in words."""

from __future__ import annotations

import gzip
import io
import json
import wave
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow import fs, ipc

from narrows.errors import DataError
from narrows.sources.joined import open_files
from narrows.sources.paths import of_folder
from narrows.sources.reading import Reading
from narrows.sources.source import open_source

TABLE = pa.table({"a": [1, 2, 3], "s": ["x", None, "z"]})
ARRAY = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)


def saved(save):
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


def arrow(table, stream=False):
    def save(buffer):
        with (ipc.new_stream if stream else ipc.new_file)(buffer, table.schema) as writer:
            writer.write_table(table)

    return saved(save)


def sound(buffer):
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.arange(50, dtype="<i2").tobytes())


def zipped(buffer):
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", CSV)


CSV = b"a,s\n1,x\n2,\n3,z\n"
IDX = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in ARRAY.shape) + ARRAY.tobytes()
FILES = {
    "t.parquet": saved(lambda buffer: pq.write_table(TABLE, buffer)),
    "t.csv": CSV,
    "t.csv.gz": gzip.compress(CSV),
    "t.jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in TABLE.to_pylist()),
    "t.jsonl.zst": pa.compress(b'{"a": 1}\n', "zstd", asbytes=True),
    "t.arrow": arrow(TABLE),
    "t.arrows": arrow(TABLE, stream=True),
    "t.npy": saved(lambda buffer: np.save(buffer, ARRAY)),
    "t.npz": saved(lambda buffer: np.savez_compressed(buffer, x=ARRAY)),
    "t-ubyte": IDX,
    "t-ubyte.gz": gzip.compress(IDX),
    "t.png": saved(lambda buffer: Image.fromarray(ARRAY[0]).save(buffer, "PNG")),
    "t.wav": saved(sound),
    "lines.txt": b"first\nsecond\n",
}
READINGS = {"lines.txt": Reading(form="text")}


class Memory(fs.FileSystemHandler):
    """A file system of a dict, flat but for what the names say."""

    def __init__(self, files):
        self.files = files

    def get_type_name(self):
        return "memory"

    def normalize_path(self, path):
        return path

    def get_file_info(self, paths):
        return [self._info(path) for path in paths]

    def _info(self, path):
        if path in self.files:
            return fs.FileInfo(path, fs.FileType.File, size=len(self.files[path]))
        below = any(name.startswith(f"{path}/") for name in self.files)
        return fs.FileInfo(path, fs.FileType.Directory if below else fs.FileType.NotFound)

    def get_file_info_selector(self, selector):
        return [self._info(name) for name in self.files if name.startswith(f"{selector.base_dir}/")]

    def open_input_file(self, path):
        if path not in self.files:
            raise FileNotFoundError(path)
        return pa.PythonFile(io.BytesIO(self.files[path]), mode="r")

    open_input_stream = open_input_file

    def _refused(self, *_):
        raise OSError("read only")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _refused
    delete_file = move = copy_file = open_output_stream = open_append_stream = _refused


def table_of(source):
    table = pa.Table.from_batches([batch for _, batch in source.batches()], source.schema)
    return table.drop([name for name in ("path",) if name in table.column_names])


@pytest.mark.parametrize("name", FILES)
def test_every_format_is_read_through_any_file_system(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    reading = READINGS.get(name, Reading())
    here = table_of(open_source(tmp_path / name, reading=reading))
    assert here.num_rows > 0
    assert table_of(open_source((tmp_path / name).as_uri(), reading=reading)).equals(here)
    system = fs.PyFileSystem(Memory({f"bucket/part/{name}": FILES[name]}))
    for root, where in ((system, "bucket/part"), (fs.SubTreeFileSystem("bucket", system), "part")):
        assert table_of(open_files(of_folder(where, root, where), reading)).equals(here)


def test_folders_of_many_files_with_keys(tmp_path):
    files = {f"b/year={year}/{part}.csv": f"a\n{year}{part}\n".encode() for year in (1, 2) for part in (1, 2)}
    system = fs.PyFileSystem(Memory({**files, "b/_SUCCESS": b""}))
    found = table_of(open_files(of_folder("b", system, "b"), Reading()))
    assert found.to_pydict() == {"a": [11, 12, 21, 22], "year": [1, 1, 2, 2]}
    images = {f"b/{label}/{i}.png": FILES["t.png"] for label in "xy" for i in range(30)}
    source = open_files(of_folder("b", fs.PyFileSystem(Memory(images)), "b"), Reading())
    assert table_of(source).column("label").to_pylist() == ["x"] * 30 + ["y"] * 30


@pytest.mark.parametrize(
    ("pattern", "found"), [("*.csv", [3]), ("*/*.csv", [1, 2]), ("y=*/a.csv", [1, 2]), ("y=*2", [2]), ("y*", [1, 2])]
)
def test_globs_in_urls_match_as_on_a_disk(tmp_path, pattern, found):
    for name, value in (("y=1/a.csv", 1), ("y=2/a.csv", 2), ("c.csv", 3)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"a\n{value}\n")
    table = table_of(open_source(f"{tmp_path.as_uri()}/{pattern}"))
    assert table.column("a").to_pylist() == found
    assert table.equals(table_of(open_source(f"{tmp_path}/{pattern}")))
    with pytest.raises(DataError, match="lies in folders"):  # files at several depths, told alike
        open_source(f"{tmp_path.as_uri()}/**/*.csv")


def test_a_file_that_goes_away_is_told():
    files = {"b/1.csv": CSV, "b/2.csv": CSV}
    source = open_files(of_folder("b", fs.PyFileSystem(Memory(files)), "b"), Reading())
    del files["b/2.csv"]
    with pytest.raises(DataError, match=r"no such file: b/2.csv"):
        table_of(source)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://example.invalid/a.csv", r"URL http.*wanted: file://, s3://, gs:// or hdfs://; try: downloading it"),
        ("ftp://name:secret@x/y", r"^URL ftp://x/y"),
        ("file:///none.csv", "no such file: file:///none.csv"),
        ("file:///none/*.csv", "no file matches file:///none/.*csv"),
        ("hdfs://nowhere.invalid/x", "hdfs://nowhere.invalid/x cannot be reached.*try: checking the address"),
    ],
)
def test_urls_that_lead_nowhere_are_told(url, message):
    with pytest.raises(DataError, match=message) as caught:
        open_source(url)
    assert "secret" not in str(caught.value)
