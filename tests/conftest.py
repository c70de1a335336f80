"""Narrows is imported before torch, as its setting of torch's threads needs (see `narrows/__init__.py`)."""

import signal

from hypothesis import settings

import narrows  # noqa: F401

# a shell has programs in the background ignore Ctrl-C, which some tests press
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# no test is about time: a first example that imports something, or a busy machine, is no failure
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
