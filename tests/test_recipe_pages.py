"""Every recipe has a page that is true: its arguments, its command, its picture and the figures that it quotes."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command import narrows
from narrows import load
from narrows.model.recipe import Recipe
from narrows.model.recipes import RECIPES

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "recipes"
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "pictures.json").read_text("utf-8"))
HEADINGS = ["What it is", "Formula", "When to use it", "Arguments", "One command", "What it made"]
COMMAND = re.compile(r"```sh\nnarrows (?P<words>fit digits --recipe .*) --out (?P<out>\S+)\n```")


def table_of(name: str) -> str:
    """The table of a recipe's arguments, from its signature and docstring."""
    parameters = inspect.signature(RECIPES[name]).parameters
    if not parameters:
        return "None."
    lines = ["| argument | default | what it is |", "|---|---|---|"]
    told = described(inspect.getdoc(RECIPES[name]) or "")
    for key, parameter in parameters.items():
        default = f"`{parameter.default}`" if parameter.default != "" else "none"
        lines.append(f"| `{key}` | {default} | {told[key].replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def described(docstring: str) -> dict[str, str]:
    """Each argument's text, on one line, of a docstring in Google's style."""
    block = docstring.partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.split(r"^ {4}(?=\w)", block, flags=re.MULTILINE)[1:]
    pairs = [entry.partition(":") for entry in entries]
    return {key.strip(): re.sub(r"\s+", " ", text).strip().removesuffix(".") for key, _, text in pairs}


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text("utf-8")


def section(name: str, heading: str) -> str:
    return page(name).split(f"## {heading}\n")[1].partition("\n## ")[0].strip()


def test_every_recipe_has_a_page_and_nothing_else_does():
    assert {path.stem for path in PAGES.glob("*.md")} == {*RECIPES, "README"}
    assert {path.stem for path in (PAGES / "pictures").iterdir()} == set(RECIPES) == set(RESULTS)


def test_the_index_lists_all_in_their_order_with_what_they_are_for():
    rows = re.findall(
        r"^\| \[`(\w+)`\]\((\w+)\.md\) \| (.+?) \| (.+?) \|$", (PAGES / "README.md").read_text("utf-8"), re.M
    )
    assert [name for name, *_ in rows] == list(RECIPES) == [link for _, link, *_ in rows]
    assert all(len(what) > 20 and len(use) > 10 for *_, what, use in rows)
    assert "docs/recipes" in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("name", RECIPES)
def test_a_page_has_every_part(name):
    text = page(name)
    assert text.startswith("# ") and f": `{name}`\n" in text
    assert re.findall(r"^## (.*)$", text, re.M) == HEADINGS
    formula = section(name, "Formula")
    assert formula.startswith("$$\n") and formula.count("$$") == 2 and re.search(r"Papers?: .*\d{4}", formula, re.S)
    assert formula.count("{") == formula.count("}") and len(re.findall(r"(?<!\$)\$(?!\$)", formula)) % 2 == 0
    assert len(section(name, "What it is").split()) > 25
    assert re.search(r"\b(not?|nor|otherwise)\b", section(name, "When to use it"), re.IGNORECASE), "when not to use it"
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (PAGES / link).is_file(), link


@pytest.mark.parametrize("name", RECIPES)
def test_the_arguments_are_those_of_the_function(name):
    assert section(name, "Arguments") == table_of(name)


@pytest.mark.parametrize("name", RECIPES)
def test_the_picture_is_small_and_shows_something(name):
    path = PAGES / "pictures" / f"{name}.png"
    assert 2_000 < path.stat().st_size < 40_000
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width < 900
        assert np.asarray(image.convert("L")).std() > 10
    assert f"](pictures/{name}.png)" in section(name, "What it made")


@pytest.mark.parametrize("name", RECIPES)
def test_the_figures_quoted_are_those_that_the_picture_s_run_printed(name):
    said, found = " ".join(section(name, "What it made").split()), RESULTS[name]
    for figure in found["figures"].values():
        assert re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d]|\.\d)", said), figure
    assert f"narrows {COMMAND.search(page(name))['words']}" == found["command"]


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_runs(name, tmp_path):
    match = COMMAND.search(page(name))
    words = re.sub(r" --epochs \d+", "", match["words"]).split()
    assert Recipe.parse(words[words.index("--recipe") + 1]).name == name and match["out"] == f"{name}.narrows"
    narrows(*words, "--epochs", 1, "--out", match["out"], cwd=tmp_path)
    assert load(tmp_path / match["out"]).recipe.name == name
