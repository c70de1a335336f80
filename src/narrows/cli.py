"""The command face: `narrows VERB ...`.

Verbs are loaded when they are called, so that help and typing errors answer without importing torch.
Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.config import Toml

from narrows import __version__
from narrows.errors import NarrowsError

VERBS = {
    "fit": "Train a model on data and write it to a file.",
    "encode": "Rows to codes.",
    "decode": "Codes back to rows.",
    "reconstruct": "Rows to codes and back: what the model keeps of them, with holes filled.",
    "evaluate": "Reconstruction error per column, against PCA of the same size and the mean.",
    "report": "A page to look at: curves, reconstructions, errors, a map of the codes, the worst rows.",
    "info": "What a model is.",
}

app = App(
    name="narrows",
    help="Autoencoders for large, messy data. DATA is a file, a glob, a folder, a URL or the word `digits`.",
    version=__version__,
    version_flags=["--version"],
)
for verb, what in VERBS.items():
    app.command(f"narrows.verbs:{verb}", name=verb, help=what)


@app.meta.default
def configured(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)], config: Path | None = None
) -> Any:
    """Run a verb.

    Args:
        tokens: the verb and its arguments.
        config: a TOML file of options, named as on the command line (`epochs = 20`); those given there come first.
    """
    app.config = () if config is None else (Toml(config, must_exist=True, use_commands_as_keys=False),)
    return app(tokens)


def main() -> None:
    """Run the command line and exit with its code."""
    warnings.showwarning = _say
    try:
        sys.exit(_run(app.meta))
    except NarrowsError as error:
        _print(f"narrows: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        _print("narrows: interrupted")
        sys.exit(130)


def _run(meta: Callable[..., Any]) -> int:
    """The verb's exit code; wrong usage is 2."""
    try:
        answer = meta()
    except SystemExit as stop:
        return 2 if stop.code == 1 else int(stop.code or 0)
    return answer if isinstance(answer, int) else 0


def _say(message: Warning | str, *_: Any, **__: Any) -> None:
    _print(f"narrows: warning: {message}")


def _print(text: str) -> None:
    print(text, file=sys.stderr)
