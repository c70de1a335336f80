"""Writes `docs/benchmarks.md` from the files in `results/`: run it after any benchmark, since a test compares the two.

    python benchmarks/page.py

A `note` in a file, on how its figures came about, stands below its section's text until figures are added.
The page is a function of those files alone, so the same results give the same bytes.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sections import SECTIONS

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
INTRODUCTION = """# Benchmarks

Written by `python benchmarks/page.py` from `benchmarks/results/*.json`, which the commands below fill; do not edit it.
[How to run them](../benchmarks/README.md). Losses stand beside wins: bold is what beats Narrows. Peers ran in the same
job on the same arrays and machine, unless a figure is called published."""
CALLED = {"processor", "cores", "threads", "date"}


def page(folder: Path) -> str:
    """The page of a folder of results.

    Raises:
        SystemExit: for a file that no section shows.
    """
    files = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    if unknown := sorted(files.keys() - SECTIONS.keys()):
        raise SystemExit(f"results without a section: {', '.join(unknown)}; write one in benchmarks/sections.py")
    parts = [INTRODUCTION]
    for name, section in SECTIONS.items():
        if name in files:
            command = f"`python benchmarks/{section.command}`. {where(files[name])}"
            about = f"{section.about} {files[name].get('note', '')}".rstrip()
            parts += [f"## {section.title}", command, about, section.tables(files[name])]
    return "\n\n".join(map(wrapped, "\n\n".join(parts).split("\n\n"))) + "\n"


def wrapped(paragraph: str) -> str:
    """Prose in lines of the house's width; tables and headings as they are."""
    return (
        paragraph if paragraph[0] in "|#" else textwrap.fill(" ".join(paragraph.split()), 120, break_long_words=False)
    )


def where(results: dict[str, Any]) -> str:
    """Machine, versions and dates, as far as they were kept."""
    machines = list(described(results))
    if not machines:
        return "Machine and versions were not kept."
    about = machines[0]
    days = sorted({facts["date"] for facts in [results, *machines] if "date" in facts})
    versions = results.get("versions") or {key: value for key, value in about.items() if key not in CALLED}
    listed = ", ".join(f"{package} {version}" for package, version in sorted(versions.items()))
    return f"{about['processor']}, {about['cores']} cores; {listed}; {' to '.join(sorted({days[0], days[-1]}))}."


def described(results: Any) -> Iterator[dict[str, Any]]:
    """Every description of a machine, at any depth."""
    if isinstance(results, dict):
        if "machine" in results:
            yield results["machine"]
        for value in results.values():
            yield from described(value)


if __name__ == "__main__":
    PAGE.write_text(page(RESULTS))
