"""Narrows is imported before torch, as its setting of torch's threads needs (see `narrows/__init__.py`)."""

import narrows  # noqa: F401
