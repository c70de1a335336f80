"""A slow and distant link between two network namespaces, made of two TUN devices and a relay.

    narrows-0 [ tun 10.77.0.1 ] <-> relay: paces bytes, holds packets <-> [ tun 10.77.0.2 ] narrows-1

As a script, the relay: `python benchmarks/link.py MEGABITS MILLISECONDS`. It works where a kernel has no `netem`, and
needs root. A packet leaves when the one before it has passed at the rate of the link, and arrives after the delay;
where a megabyte waits, further packets are lost, as in a router. Knows nothing of what is sent.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path

SPACES = ("narrows-0", "narrows-1")
DEVICE, MTU, PORT = "link", 9000, 5201
ADDRESSES = ("10.77.0.1", "10.77.0.2")
WAITING = 1_000_000  # bytes before the link, 80 ms of 100 Mbit/s
AT_ONCE = 64  # packets taken before the other way has its turn
_TUNSETIFF, _TUN, _BARE = 0x400454CA, 0x0001, 0x1000  # of linux/if_tun.h


class Way:
    """One direction of the link.

    Args:
        source: file descriptor of the device that packets come from.
        target: of the one they go to.
        rate: bytes a second.
        delay: seconds from the end of sending to arrival.
    """

    def __init__(self, source: int, target: int, rate: float, delay: float) -> None:
        self.source, self.target, self.rate, self.delay = source, target, rate, delay
        self._packets: deque[tuple[float, bytes]] = deque()
        self._free = 0.0  # when the last packet has left

    @property
    def due(self) -> float:
        """When the next packet arrives."""
        return self._packets[0][0] if self._packets else inf

    def take(self, now: float) -> None:
        """Packets that have come to the link."""
        with suppress(BlockingIOError):
            for _ in range(AT_ONCE):
                packet = os.read(self.source, MTU + 64)
                if (self._free - now) * self.rate < WAITING:
                    self._free = max(now, self._free) + len(packet) / self.rate
                    self._packets.append((self._free + self.delay, packet))

    def give(self, now: float) -> None:
        """Packets that have passed it."""
        while self.due <= now:
            os.write(self.target, self._packets.popleft()[1])


def relay(ends: Sequence[int], rate: float, delay: float) -> None:
    """Carry packets between two devices until this process is ended."""
    ways = [Way(ends[0], ends[1], rate, delay), Way(ends[1], ends[0], rate, delay)]
    while True:
        wait = min(way.due for way in ways) - time.monotonic()
        came = select.select(ends, [], [], None if wait == inf else max(0.0, wait))[0]
        now = time.monotonic()
        for way in ways:
            if way.source in came:
                way.take(now)
            way.give(now)


def device(number: int) -> int:
    """A TUN device in a namespace, up and with its address; gone when the descriptor is closed."""
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    name, space = f"{DEVICE}{number}", SPACES[number]
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TUN | _BARE))
    ip("link", "set", name, "netns", space)
    ip("-n", space, "addr", "add", ADDRESSES[number], "peer", ADDRESSES[1 - number], "dev", name)
    ip("-n", space, "link", "set", name, "mtu", str(MTU), "up")
    ip("-n", space, "link", "set", "lo", "up")
    return end


def ip(*words: str) -> None:
    """Iproute2's command."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


def why_not() -> str:
    """Why this machine cannot have such a link; empty where it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    try:
        ip("netns", "list")
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces: {error}"
    return ""


@contextmanager
def linked(megabits: float, milliseconds: float) -> Iterator[dict[str, float]]:
    """Two namespaces with the link between them, in the body of a `with`; gives what was measured of it.

    Args:
        megabits: a second, each way.
        milliseconds: from one end to the other.
    """
    carrier: subprocess.Popen[bytes] | None = None
    if (Path("/run/netns") / SPACES[0]).exists():
        raise SystemExit(
            f"there is a namespace {SPACES[0]}: another run's, or left by one that was killed (ip netns del)"
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the namespaces go, too
    try:
        for space in SPACES:
            ip("netns", "add", space)
        words = [sys.executable, __file__, str(megabits), str(milliseconds)]
        carrier = subprocess.Popen(words, stdout=subprocess.PIPE)
        if not carrier.stdout or not carrier.stdout.readline():
            raise SystemExit("the relay did not start")
        yield measured()
    finally:
        if carrier:
            carrier.terminate()
            carrier.wait()
        for space in SPACES:
            with suppress(subprocess.CalledProcessError):
                ip("netns", "del", space)


def inside(number: int, words: Sequence[str]) -> list[str]:
    """A command as it is run in a namespace."""
    return ["ip", "netns", "exec", SPACES[number], *words]


def measured() -> dict[str, float]:
    """Round trip in ms (median of 20) and Mbit/s of 25 MB over one connection, on the idle link."""
    other = subprocess.Popen(inside(1, [sys.executable, __file__, "answer"]), stdout=subprocess.PIPE)
    try:
        if other.stdout:
            other.stdout.readline()
        words = inside(0, [sys.executable, __file__, "ask"])
        figures: dict[str, float] = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
    finally:
        other.wait()
    return figures


def answer() -> None:
    """The far end of the measurement."""
    with socket.create_server((ADDRESSES[1], PORT)) as server:
        print("ready", flush=True)
        line, _ = server.accept()
        with line:
            for _ in range(20):
                line.sendall(line.recv(1))
            left = 25_000_000
            while left:
                left -= len(line.recv(min(left, 1 << 20)))
            line.sendall(b"!")


def ask() -> None:
    """The near end; prints what was measured."""
    with socket.create_connection((ADDRESSES[1], PORT)) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trips = []
        for _ in range(20):
            began = time.perf_counter()
            line.sendall(b"?")
            line.recv(1)
            trips.append(time.perf_counter() - began)
        began = time.perf_counter()
        line.sendall(bytes(25_000_000))
        line.recv(1)
        rate = 25 * 8 / (time.perf_counter() - began)
    print(json.dumps({"round trip, ms": round(1e3 * sorted(trips)[10], 2), "Mbit/s": round(rate, 1)}))


def main() -> None:
    """The relay, or an end of the measurement."""
    if sys.argv[1] in ("answer", "ask"):
        {"answer": answer, "ask": ask}[sys.argv[1]]()
        return
    megabits, milliseconds = map(float, sys.argv[1:])
    ends = [device(0), device(1)]
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))  # links do not slow down when processors are busy
    print("ready", flush=True)
    relay(ends, megabits * 1e6 / 8, milliseconds / 1e3)


if __name__ == "__main__":
    main()
