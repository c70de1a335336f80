"""What `fit` says of the model that it made, and how it is put down: a few lines for people, or JSON."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path

from rich.console import Console
from rich.table import Table

from narrows.applied import say
from narrows.errors import NarrowsError
from narrows.fitted import Model
from narrows.stopwatch import Stopwatch
from narrows.tasks.detect import PART as DETECT
from narrows.tasks.figures import figure
from narrows.tasks.holes import PART as NORMAL
from narrows.tasks.purposes import Purpose
from narrows.tasks.reference import PART as DRIFT


def tell(model: Model, out: Path, folder: Path, json: bool, profile: Stopwatch | None = None) -> None:
    """Say what was trained, what is wrong with it, what comes next, and where the time went."""
    if json:
        spent_on = {} if profile is None else {"profile": profile.to_json()}
        facts = {key: value for key, value in model.facts.items() if key != "records"}
        found = {"diagnosis": [finding.to_json() for finding in model.diagnosis]}
        print(
            jsonlib.dumps(
                {"model": str(out), "run": str(folder), **facts, **best(model), **found, **spent_on}, sort_keys=True
            )
        )
        return
    say(f"{out}: {sentence(model)}")
    for finding in model.diagnosis:
        if finding.problem:
            say(str(finding))
    jobs = ((DETECT, "detect"), (DRIFT, "drift"), (NORMAL, "impute"))
    first = next((verb for part, verb in jobs if part in model.parts), "evaluate")
    say(f"Next: narrows {first} {out} DATA; narrows report {out} DATA. The run is in {folder}.")
    if profile is not None:
        Console().print(_profiled(profile))


def _profiled(profile: Stopwatch) -> Table:
    """A line for whatever took time."""
    table = Table("where the time went", "seconds", "share", title="Profile")
    for column in table.columns[1:]:
        column.justify = "right"
    for what, seconds in profile.to_json().items():
        table.add_row(what, f"{seconds:.2f}", f"{seconds / max(profile.total, 1e-9):.0%}")
    return table


def save(model: Model, out: Path, folder: Path) -> None:
    """Write the model; where that fails, say that the training was not for nothing."""
    try:
        model.save(out)
    except NarrowsError as error:
        kept = f"{error.hint}; then the same command with --resume, since {folder} keeps the trained weights"
        raise NarrowsError(error.got, error.wanted, kept if folder.is_dir() else error.hint) from error


def going(name: str, start: Model, purpose: Purpose) -> str:
    """What going on from a model keeps, and what begins anew."""
    anew = [part for part in purpose.learn if part in start.parts]
    learnt = f" Learnt anew from these rows: {', '.join(anew)}." if anew else ""
    kept = "columns, recipe, network and code stay as they are, and levels that it does not know stay unseen"
    return f"Going on from {name}: {kept}. The optimizer begins anew.{learnt}"


def sentence(model: Model) -> str:
    """One line on what was trained."""
    facts = model.facts
    rows, epochs = (f"{facts[word]:,} {word if facts[word] != 1 else word[:-1]}" for word in ("rows", "epochs"))
    held = f" and {facts['validation_rows']:,} held out" if facts["validation_rows"] else ""
    losses = ", ".join(f"{name} {figure(value)}" for name, value in best(model).items())
    ended = f"{epochs}, stopped by: {facts['reason']}"
    before = facts.get("before")
    earlier = f", after {before['rows']:,} rows before" if before else ""
    return f"{model.recipe.name}, code of {model.code_size}, from {rows}{held}{earlier}; {ended}; {losses}"


def best(model: Model) -> dict[str, float]:
    """Losses a row of the record whose weights were kept."""
    records, best = model.facts["records"], model.facts["best"]
    names = {"loss": "loss", "val_loss": "validation loss"}
    return {} if best is None else {text: records[best][key] for key, text in names.items() if key in records[best]}
