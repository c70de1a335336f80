"""Runs the command line within the test's process: a process of its own would import torch anew each time."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from dataclasses import dataclass
from unittest import mock

import pytest

from narrows.cli import main


@dataclass
class Done:
    """What a command printed."""

    stdout: str
    stderr: str


def narrows(*words, cwd, code=0, stdout=None, stdin=""):
    """Run a command in this process, as `main` does, in a folder of its own, with so much on standard input."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(stdout or out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "stdin", io.StringIO(stdin)),
        mock.patch.object(sys, "argv", ["narrows", *map(str, words)]),
        warnings.catch_warnings(action="default"),
        warnings.catch_warnings(action="error", category=RuntimeWarning),  # NumPy's own are no user's business
        pytest.raises(SystemExit) as stop,
    ):
        main()
    done = Done(out.getvalue(), err.getvalue())
    assert (stop.value.code or 0) == code, done
    assert "Traceback" not in done.stderr
    return done
