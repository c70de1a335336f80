"""The command face: `narrows VERB ...`.

Verbs are loaded when they are called, so that help and typing errors answer without importing torch.
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 drift found, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import ExitStack, redirect_stdout, suppress
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Toml

from narrows import __version__
from narrows.errors import NarrowsError
from narrows.launch import launched

VERBS = {
    "fit": "Train a model on data and write it to a file.",
    "encode": "Rows to codes.",
    "decode": "Codes back to rows.",
    "reconstruct": "Rows to codes and back: what the model keeps of them, with holes filled.",
    "evaluate": "Reconstruction error per column, against PCA of the same size and the mean.",
    "report": "A page to look at: curves, reconstructions, errors, a map of the codes, the worst rows.",
    "info": "What a model is.",
    "reshard": "Data re-cut for streaming: Parquet in row groups that many can be read of side by side.",
}
JOBS = {
    "detect": "Anomalies among rows: scores, p-values, which rows stand out, and why.",
    "follow": "Scores of steps of a series as they arrive on standard input, a line of JSON for each.",
    "drift": "Whether new rows are like those of training: columns, codes and score; exit code 3 where they are not.",
    "generate": "New rows like those of training; or rows between rows.",
    "impute": "Rows with their holes filled: by what is expected there, or by draws.",
    "probe": "What codes know of a column the model was never told: a small reader of them, beside raw rows and PCA.",
    "denoise": "Rows without their noise; pictures, sounds and series in their own size.",
    "tune": "Choose code size and settings by trials, and fit the model that they chose.",
}

SHARED = {"fit", "encode", "decode", "reconstruct", "detect", "impute"}  # done by all processes; others by rank 0

app = App(
    name="narrows",
    help="Autoencoders for large, messy data. DATA is a file, a glob, a folder, a URL or the word `digits`.",
    version=__version__,
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(consume_multiple=True),  # `--hidden 256 64`
)
app.meta.suppress_keyboard_interrupt = False  # it does not take this over
for home, verbs in (("verbs", VERBS), ("jobs", JOBS)):
    for verb, what in verbs.items():
        app.command(f"narrows.{home}:{verb}", name=verb, help=what)


@app.meta.default
def configured(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)], config: Path | None = None
) -> Any:
    """Run a verb.

    Args:
        tokens: the verb and its arguments.
        config: a TOML file of options, named as on the command line (`epochs = 20`); those given there come first.
    """
    if _rank() > 0 and tokens and tokens[0] not in SHARED:
        return 0
    app.config = () if config is None else (Toml(config, must_exist=True, use_commands_as_keys=False),)
    return app(tokens, exit_on_error=False)


def main() -> None:
    """Run the command line and exit with its code; of several processes only rank 0 prints results and warnings."""
    warnings.showwarning = _say
    with ExitStack() as stack:
        if _rank() > 0:
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        code = _code()
    sys.exit(code)


def _code() -> int:
    """The exit code of the verb that was asked for, after saying in a sentence what went wrong."""
    try:
        return _run()
    except CycloptsError:  # it has been printed
        return 2
    except NarrowsError as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        _failed("interrupted")
        return 130
    except BrokenPipeError:  # the reader of a pipe has seen enough
        _close_stdout()
        return 1
    except OSError as error:
        _close_stdout()
        return _failed(f"{error.filename or 'output'}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        return _failed("not enough memory; try: a smaller network, batch size or budget")


def _run() -> int:
    app.config = ()  # in a process that ran a verb before
    try:
        answer = app.meta(exit_on_error=False)
    except SystemExit as stop:
        answer = stop.code
    if sys.stdout:
        sys.stdout.flush()
    return answer if isinstance(answer, int) else 0


def _failed(why: str) -> int:
    where = f"rank {os.environ['RANK']}: " if os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ else ""
    _print(f"narrows: {where}{why}")
    return 1


def _close_stdout() -> None:
    """Nothing can be printed any more; without this, Python would try again when it ends, and complain."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(message: Warning | str, *_: Any, **__: Any) -> None:
    if _rank() == 0:
        _print(f"narrows: warning: {message}")


def _rank() -> int:
    """Which of several processes this is."""
    try:
        return launched()[0]
    except NarrowsError:  # the verb will say so
        return 0


def _print(text: str) -> None:
    print(text, file=sys.stderr)
