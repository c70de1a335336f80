"""Results that are kept as they come, in a file that several processes may add to; and put into pages of the docs."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from narrows.files import atomic

VECTORS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 with bfloat16", "avx512f": "AVX-512", "avx2": "AVX2"}


@contextmanager
def kept(path: Path, empty: dict[str, Any], packages: Collection[str]) -> Iterator[dict[str, Any]]:
    """The results, to be changed: read, and written at the end, while no other process does the same.

    Args:
        path: of the file.
        empty: what they are before there is one.
        packages: whose versions are noted, where they are installed.
    """
    path.parent.mkdir(exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"versions": {}, **empty}
        results.pop("note", None)  # it spoke of the figures before
        yield results
        machine = here()
        results["date"] = machine.pop("date")
        results["machine"] = {**machine, "threads": torch.get_num_threads()}
        results["versions"] |= {found.name: found.version for found in distributions() if found.name in packages}
        text = json.dumps(results, indent=1, sort_keys=True)
        with atomic(path) as written:  # innermost objects on a line each: there are thousands
            written.write_text(re.sub(r"\{[^{}]*\}", lambda found: " ".join(found[0].split()), text) + "\n")
    finally:
        os.close(folder)


def put(page: Path, name: str, text: str) -> None:
    """Write a text between the marks `<!-- NAME -->` and `<!-- /NAME -->` of a page, in place of what stands there."""
    opening, closing = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, mark, rest = page.read_text().partition(opening)
    _, end, after = rest.partition(closing)
    if not end:
        raise SystemExit(f"{page} has no {opening.strip()} ... {closing}")
    page.write_text(f"{before}{mark}\n{text}\n{end}{after}")


def here() -> dict[str, Any]:
    """This machine and the day, for figures that are measured one by one."""
    return {"processor": processor(), "cores": os.cpu_count(), "date": datetime.now(UTC).date().isoformat()}


def processor() -> str:
    """Name of the processor, with the widest vectors it computes on where Linux tells."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    widest = next((name for flag, name in VECTORS.items() if flag in facts.get("flags", "").split()), None)
    name = facts.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({widest})" if widest else name
