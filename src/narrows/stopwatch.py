"""Where the time of a fit goes, by what was done: for `fit --profile`.

Work says what it is by `with spent("read"):`; in the body of `timing` its seconds are added up, elsewhere nothing is.
Threads beside the main one are told apart, since their seconds are nobody's waiting. On a GPU steps are queued and not
waited for: their seconds there are those of queueing, and the waiting shows where figures are asked for.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock, current_thread, main_thread
from typing import TypeVar

Item = TypeVar("Item")

_NOTHING: AbstractContextManager[None] = nullcontext()
_watch: Stopwatch | None = None


class Stopwatch:
    """Seconds by what was done.

    Attributes:
        seconds: of the main thread, each second once: what is done within something else is not counted to it as well.
        beside: of other threads.
        total: from the beginning to the end.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.beside: defaultdict[str, float] = defaultdict(float)
        self.total = 0.0
        self._began, self._lock, self._within = time.perf_counter(), Lock(), [0.0]

    @contextmanager
    def spent(self, what: str) -> Iterator[None]:
        """Add the body's seconds to what was done."""
        began = time.perf_counter()
        if current_thread() is not main_thread():
            yield
            with self._lock:
                self.beside[what] += time.perf_counter() - began
            return
        self._within.append(0.0)
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            self.seconds[what] += seconds - self._within.pop()
            self._within[-1] += seconds

    def stop(self) -> None:
        """The end."""
        self.total = time.perf_counter() - self._began

    def to_json(self) -> dict[str, float]:
        """Seconds by what was done, `other` for the rest, and `... (beside)` for those of other threads."""
        told = _longest(self.seconds)
        told["other"] = max(0.0, self.total - sum(told.values()))
        told |= {f"{what} (beside)": seconds for what, seconds in _longest(self.beside).items()}
        return {what: round(seconds, 3) for what, seconds in (told | {"total": self.total}).items()}


def _longest(seconds: Mapping[str, float]) -> dict[str, float]:
    """What took longest first."""
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


@contextmanager
def timing() -> Iterator[Stopwatch]:
    """Add up what is done in the body of a `with`."""
    global _watch
    before, watch = _watch, Stopwatch()
    _watch = watch
    try:
        yield watch
    finally:
        _watch = before
        watch.stop()


def spent(what: str) -> AbstractContextManager[None]:
    """Around work, to say what it is."""
    return _NOTHING if _watch is None else _watch.spent(what)


def timed(what: str, items: Iterable[Item]) -> Iterator[Item]:
    """The items, and the seconds of waiting for each of them."""
    return iter(items) if _watch is None else _awaited(what, iter(items))


def _awaited(what: str, items: Iterator[Item]) -> Iterator[Item]:
    while True:
        with spent(what):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item
