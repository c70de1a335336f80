"""The README is true: every command in it runs, its Python runs, and its tree is the package."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from test_cli import narrows

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
STEPS = re.compile(
    r"```python\n(?P<code>.*?)```|^    narrows (?P<words>[^#\n]+)|^    torchrun (?P<launched>[^#\n]+)",
    re.MULTILINE | re.DOTALL,
)


def launched(words, folder):
    """Run what torchrun is told to."""
    command = [sys.executable, "-m", "torch.distributed.run", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr


def test_everything_in_it_runs_in_order(tmp_path, monkeypatch):
    """Every command and every piece of Python, from top to bottom, in one folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text(README)
    steps, names = list(STEPS.finditer(README)), {}
    assert len(steps) >= 17
    for step in steps:
        if step["code"]:
            exec(compile(step["code"], "README.md", "exec"), names)
            continue
        if step["launched"]:
            launched(step["launched"].split(), tmp_path)
            continue
        words = step["words"].split()
        narrows(*words, cwd=tmp_path)
        made = words[words.index("--out") + 1] if "--out" in words else None
        assert made is None or (tmp_path / made).stat().st_size > 0
    assert "how they go together did" in str(names["found"])
    assert list(names["again"].columns) == ["size", "rooms", "town"]
    assert names["again"]["rooms"].dtype.kind == "i" and names["codes"].shape == (100, 2)
    assert (tmp_path / "homes.narrows").exists() and (tmp_path / "wide.narrows").exists()
    assert len(list(tmp_path.glob("codes-0000?-of-00002.parquet"))) == 2
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 1797


def test_the_python_on_the_page_of_anomalies_says_what_the_page_says():
    text = (ROOT / "docs" / "anomalies.md").read_text()
    names = {}
    for step in STEPS.finditer(text):
        exec(compile(step["code"], "anomalies.md", "exec"), names)
    assert names["p"][7] < 0.02 and names["scores"].argsort()[-5:].tolist().count(7)
    assert "heat 30" in names["why"] and "load 1.5" in names["why"]


def test_the_tree_is_the_package():
    tree = README.split("    src/narrows/\n")[1].split("\n\n")[0]
    named = set(re.findall(r"\b(\w+\.py|\w+/)(?=\s|$)", tree))
    package = ROOT / "src" / "narrows"
    there = {p.name for p in package.glob("*.py")} | {f"{p.parent.name}/" for p in package.glob("*/__init__.py")}
    assert named == there - {"__init__.py", "__main__.py"}


def test_every_make_target_named_is_one():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        name
        for text in (README, (ROOT / "CONTRIBUTING.md").read_text())
        for name in re.findall(r"make ([a-z]+)\b", text)
    }
    assert {"run", "test"} <= named <= targets | {"continuous"}


@pytest.mark.skipif(sys.platform == "win32", reason="needs make")
def test_make_run_does_what_it_says(tmp_path):
    """The recipe of `make run`, with the environment that these tests run in."""
    words = ["make", "-o", f"{sys.prefix}/installed", "run", f"VENV={sys.prefix}", f"OUT={tmp_path}"]
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "160"}
    )
    assert done.returncode == 0, done.stderr
    assert "Better than PCA of 8 components" in done.stdout
    assert (tmp_path / "digits.narrows").exists() and "<svg" in (tmp_path / "report.html").read_text()
