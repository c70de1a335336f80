"""Which of several processes this one is, and what they tell each other: the one file that asks torch.distributed.

    torchrun --nproc-per-node 2 -m narrows fit DATA --out m.narrows

A launcher says rank and size in the environment (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT). In the body of
`together` the processes are one group, and `rank` and `size` are those of the group; everywhere else a process is
alone, rank 0 of 1, whoever launched it. So code that knows nothing of groups is right as it is. Messages are bytes and
tensors, never pickles. What this file does not know: what is trained, and on what.
"""

from __future__ import annotations

import atexit
import json
import os
import platform
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from narrows.errors import NarrowsError, WorldError
from narrows.launch import launched
from narrows.stopwatch import spent

PATIENCE = timedelta(seconds=25)  # for the others to come: a launcher starts all at about the same time
BLINK = 0.1  # seconds between two looks at the store
MARGIN = timedelta(seconds=3)  # that others give rank 0 to say so
SILENCE = timedelta(hours=6)  # between two words of a process that works: learning parts after training may take long
MOST_DRAWN = 8  # processes up to which each draws the numbers of all, to use its own: beyond, that would be all it does

_together = False
_span: tuple[int, int, int] | None = None


def rank() -> int:
    """Which of the group's processes this one is; 0 where there is no group."""
    return dist.get_rank() if _together else 0


def size() -> int:
    """Processes of the group; 1 where there is none."""
    return dist.get_world_size() if _together else 1


@contextmanager
def together() -> Iterator[None]:
    """The launched processes as one group, formed where there is none yet; nothing where this one was launched alone.

    Raises:
        WorldError: where others do not come in time, cannot be reached, or run other versions.
    """
    global _together
    before = _together
    if launched()[1] > 1 and not before:
        if not dist.is_initialized():
            with spent("meet"):
                _form()
        _together = True
    try:
        yield
        if _together and not before:  # nobody leaves while another still listens
            with _connected():
                dist.barrier()
    finally:
        _together = before


@contextmanager
def alone() -> Iterator[None]:
    """This process by itself in the body of a `with`, for work that one does while the others wait."""
    global _together
    before, _together = _together, False
    try:
        yield
    finally:
        _together = before


def _form() -> None:
    """Make the group: meet at the store, compare versions, connect."""
    here, count = launched()
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store = _store(here, count)
        meeting = _meet(store, here, count)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store = PrefixStore(meeting, store)
        dist.init_process_group(backend, store=store, rank=here, world_size=count, timeout=SILENCE)
        atexit.register(_leave)
    except (RuntimeError, ValueError, OSError, KeyError) as error:  # those of torch's networks are RuntimeErrors
        if isinstance(error, NarrowsError):
            raise
        got = f"rank {here} of {count} cannot meet the others at {address} ({_first_line(error)})"
        raise WorldError(
            got, "a store that rank 0 or the launcher runs", "MASTER_ADDR, MASTER_PORT, the network"
        ) from None


def _store(here: int, count: int) -> Any:
    """Where all meet: torchrun's store, the same each time that it starts the processes, or else rank 0's own."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return next(iter(rendezvous("env://", here, count, timeout=PATIENCE)))[0]
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore  # type: ignore[attr-defined]  # public, but not in its list
    return store(host, port, count, here == 0, PATIENCE, wait_for_workers=False)


def _leave() -> None:
    if dist.is_initialized():
        with suppress(RuntimeError):
            dist.destroy_process_group()


def _meet(store: Any, here: int, count: int) -> str:
    """Wait for all others; rank 0 tells whether all came, and with its versions. What it called this meeting.

    A launcher's store outlives the processes it starts anew, and what they left there: so rank 0 calls each meeting by
    a new name, and a verdict holds only for those whose own word, new each time, it answers.
    """
    if here == 0:
        meeting = secrets.token_hex(8)
        store.set("meeting", meeting)
        verdict = _verdict(store, meeting, count)
        store.set(f"{meeting}/verdict", json.dumps(verdict))
        if verdict["wrong"]:  # the store may end with this process: first let the others hear it
            with suppress(RuntimeError):
                store.wait([f"{meeting}/heard/{other}" for other in verdict["words"]], MARGIN)
    else:
        meeting, verdict = _judged(store, here, count)
    if verdict["wrong"]:
        raise WorldError(*verdict["wrong"])
    return meeting


def _judged(store: Any, here: int, count: int) -> tuple[str, dict[str, Any]]:
    """The name of the meeting and rank 0's verdict, for the others."""
    word, meeting, deadline = secrets.token_hex(8), "", time.monotonic() + (PATIENCE + MARGIN).total_seconds()
    while time.monotonic() < deadline:
        if store.check(["meeting"]) and (called := store.get("meeting").decode()) != meeting:
            meeting = called
            store.set(f"{meeting}/{here}", json.dumps({"word": word, **_versions()}))
        if meeting and store.check([f"{meeting}/verdict"]):
            verdict = json.loads(store.get(f"{meeting}/verdict"))
            if verdict["words"].get(str(here)) == word:
                store.set(f"{meeting}/heard/{here}", "")
                return meeting, verdict
        time.sleep(BLINK)
    got = f"rank {here} of {count} waited {(PATIENCE + MARGIN).seconds} s for rank 0, which did not come"
    raise WorldError(got, f"{count} processes", "what rank 0 said before it ended")


def _verdict(store: Any, meeting: str, count: int) -> dict[str, Any]:
    """What rank 0 has to say: the words of the others, and what is `wrong`: what came, what was wanted, what to try."""
    words: dict[str, str] = {}
    wrong: list[str] = []
    deadline = time.monotonic() + PATIENCE.total_seconds()
    for other in range(1, count):
        try:
            store.wait([f"{meeting}/{other}"], timedelta(seconds=max(0.01, deadline - time.monotonic())))
        except RuntimeError:
            got = f"rank 0 of {count} waited {PATIENCE.seconds} s for rank {other}, which did not come"
            wrong = wrong or [got, f"{count} processes", f"what rank {other} said before it ended"]
            continue
        told = json.loads(store.get(f"{meeting}/{other}"))
        words[str(other)] = told.pop("word")
        for name, there in told.items():
            if _versions()[name] != there:
                got, wanted = f"rank {other} has {name} {there}", f"{_versions()[name]}, as rank 0"
                wrong = wrong or [got, wanted, "one version on all nodes"]
    return {"words": words, "wrong": wrong}


def _versions() -> dict[str, str]:
    python = ".".join(platform.python_version_tuple()[:2])
    return {"narrows": version("narrows"), "torch": version("torch"), "python": python}


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


# words: every process says its own, in the same order


@contextmanager
def _connected() -> Iterator[None]:
    """Say in words that the others are lost."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, NarrowsError):
            raise
        got = f"rank {rank()} of {size()} lost the others ({_first_line(error)})"
        hint = "what the rank that ended first said; torchrun --max-restarts 3 goes on from the last checkpoint"
        raise WorldError(got, "all processes to the end", hint) from None


def added(tensor: Tensor) -> Tensor:
    """The sum over all processes of a tensor of one shape, in place."""
    if size() > 1:
        with _connected():
            dist.all_reduce(tensor)
    return tensor


def same(tensor: Tensor) -> Tensor:
    """Rank 0's values in the tensors of all, in place."""
    if size() > 1:
        with _connected():
            dist.broadcast(tensor, 0)
    return tensor


def sums(*numbers: float) -> list[float]:
    """The sums over all processes, in float64."""
    told: list[float] = added(torch.tensor(numbers, dtype=torch.float64)).tolist()
    return told


def gathered(message: bytes) -> list[bytes]:
    """What every process says, by rank."""
    if size() == 1:
        return [message]
    lengths = torch.zeros(size(), dtype=torch.long)
    lengths[rank()] = len(message)
    longest = int(added(lengths).max())
    padded = torch.zeros(max(longest, 1), dtype=torch.uint8)
    padded[: len(message)] = _tensor(message)
    words = [torch.empty_like(padded) for _ in range(size())]
    with _connected():
        dist.all_gather(words, padded)
    return [word[:length].numpy().tobytes() for word, length in zip(words, lengths.tolist(), strict=True)]


def given(message: bytes) -> bytes:
    """What rank 0 says; the others' messages are not sent."""
    if size() == 1:
        return message
    length = int(added(torch.tensor([len(message) if rank() == 0 else 0]))[0])
    word = _tensor(message) if rank() == 0 else torch.empty(length, dtype=torch.uint8)
    return same(word).numpy().tobytes()


def _tensor(message: bytes) -> Tensor:
    return torch.frombuffer(bytearray(message), dtype=torch.uint8) if message else torch.empty(0, dtype=torch.uint8)


@contextmanager
def agreed() -> Iterator[None]:
    """The body of a `with` fails for all processes when it fails for one, so that none waits for ever.

    Raises:
        WorldError: where others failed and this process did not, with what they said.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if size() > 1:
        said = [word.decode() for word in gathered(b"" if failure is None else _said(failure).encode())]
        failed = {other: words for other, words in enumerate(said) if words}
        if failure is None and failed:
            first, words = next(iter(failed.items()))
            ranks = f"rank {first}" if len(failed) == 1 else f"{len(failed)} ranks, first rank {first}"
            raise WorldError(f"{ranks}: {words}")
    if failure is not None:
        raise failure


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def compared(**facts: str) -> None:
    """Refuse to go on where a fact is another than rank 0's.

    Raises:
        WorldError: naming the first rank and fact that differ.
    """
    told = [json.loads(word) for word in gathered(json.dumps(facts).encode())]
    for other, theirs in enumerate(told):
        for name, here in told[0].items():
            if theirs.get(name) != here:
                got = f"rank {other} has {name.replace('_', ' ')} {theirs.get(name)}"
                raise WorldError(got, f"{here}, as rank 0", "the same command and files on all nodes")


class Line:
    """Messages between two processes, apart from all that the group says in common; made by all at the same time.

    One thread of a process may send and receive while another takes part in the group's own exchanges.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=SILENCE)

    def send(self, tensor: Tensor, to: int) -> None:
        """Wait until another process has taken a tensor on the CPU."""
        with _connected():
            dist.send(tensor.contiguous(), to, group=self._group)

    def receive(self, tensor: Tensor, of: int | None = None) -> int:
        """Wait for a tensor of this shape, of one process or of whoever comes first; its rank."""
        with _connected():
            return int(dist.recv(tensor, of, group=self._group))


# rows: each process has some of those of a common batch


def span_of(rows: int) -> slice:
    """The rows of a common batch that are this process's own."""
    return slice(rows * rank() // size(), rows * (rank() + 1) // size())


@contextmanager
def drawing(span: tuple[int, int, int] | None) -> Iterator[None]:
    """Random numbers for rows of a common batch, in the body of a `with`: see `drawn`.

    Args:
        span: which row of the common batch this process's own begin with, how many they are, and how many all have;
            None where it draws for itself.
    """
    global _span
    before, _span = _span, span
    try:
        yield
    finally:
        _span = before


def drawn(draw: Callable[..., Tensor], *shape: int, rows: int = 0, **options: Any) -> Tensor:
    """Random numbers for the rows at hand: those that one process with all rows would have drawn for them.

    What is not drawn row by row, such as directions for each member and row, is drawn as if alone.

    Args:
        draw: of a shape, such as `torch.randn`.
        shape: of what is wanted.
        rows: the axis of rows.
        options: of `draw`, such as `device`.
    """
    if _span is None or shape[rows] != _span[1]:
        return draw(*shape, **options)
    first, own, total = _span
    return draw(*shape[:rows], total, *shape[rows + 1 :], **options).narrow(rows, first, own)
