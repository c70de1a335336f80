"""Where to compute and how: the device, the precision of products, denormal numbers, and threads.

Every choice follows from the processor's features and the sizes of the work, never from a stopwatch, so that it is the
same choice each time. The thresholds for CPUs were measured on two Zen 5 cores with torch 2.13 and are stated at each;
those for GPUs are reckoned from data sheets.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from narrows.errors import SettingError
from narrows.launch import launched, local_rank
from narrows.train.settings import Precision

# Products a forward pass from which bfloat16 repays its conversions. At 784-1000-500-250-30 and 512 rows (1.4e9) a
# step takes 13 ms instead of 39, at 784-256-64 and 512 rows (2.2e8) 2.6 instead of 6.1, at 784-64 and 32 rows more.
# A GPU multiplies float32 in TF32 (see `tensor_float`) at half the speed of bfloat16: on an H100 a step takes 2e-14 s
# more for each of these products, and conversions take some 45 us in a network of eight layers.
REPAYS_BFLOAT16 = {"cpu": 1 << 27, "cuda": 1 << 31}

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # by what numbers glibc knows them

FREE_FOR_ROWS = 0.5  # share of a GPU's free memory: the rest is for weights, their optimizer and what a step computes

# Products a forward pass below which one thread is faster than two: 100-64-32 at 32 rows (5e5) 0.22 ms against
# 0.31, 784-128 at 32 rows (6e6) about equal. A network over grids has many small layers: a convolutional one on 32
# series of 140 steps (7e6, each weight used at many positions) took 12 ms on one thread, and 58 on two of which
# another program had one core.
REPAYS_THREADS = 1 << 24


def choose_device(name: str | None = None) -> torch.device:
    """The device of this name; None or `auto` takes a GPU where CUDA has one, else the CPU.

    Of several processes on one machine each takes a GPU of its own.

    Raises:
        SettingError: for a name torch does not know, or a device that is not there.
    """
    if torch.cuda.is_available() and launched()[1] > 1 and name in (None, "auto", "cuda"):
        return torch.device("cuda", local_rank() % torch.cuda.device_count())
    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch asserts that it was built with CUDA
        reason = str(error).splitlines()[0].partition("Expected one of")[0][:120]  # a list of devices nobody has
        because = f" ({reason})" if reason else ""
        raise SettingError(f"device {name!r}{because}", "auto, cpu, cuda or cuda:0", "device 'cpu'") from None
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Whether there are instructions for products in bfloat16: CUDA GPUs since 2020, CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    features = _features(device)
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def gains_by_bfloat16(device: torch.device) -> bool:
    """Whether they are faster than those in float32: not on Intel's cores without AMX.

    Two of a Xeon (family 6, model 207) multiply 1024 x 1024 matrices at 149 GFLOP/s in bfloat16, at 252 in float32.
    """
    features = _features(device)
    slow = features.get("cpu_name", "").startswith("Intel") and not features.get("amx_bf16")
    return has_bfloat16(device) and not slow


def _features(device: torch.device) -> Mapping[str, Any]:
    """What a CPU can do, by torch's names; nothing of other devices, and where torch cannot say."""
    told: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    return told() if device.type == "cpu" else {}


def products(module: nn.Module, rows: int) -> int:
    """Multiplications in a forward pass of `rows` rows, reckoned as those of dense layers."""
    return rows * sum(weight.numel() for weight in module.parameters() if weight.ndim > 1)


def choose_precision(module: nn.Module, rows: int, device: torch.device, precision: Precision) -> torch.dtype | None:
    """The type that autocast uses for products, None for float32 throughout.

    Args:
        module: with its weights; they stay float32 in either case.
        rows: of a step.
        device: where the module is.
        precision: `auto` takes bfloat16 where the device gains by it and the work repays it.
    """
    if precision == "float32":
        return None
    repaid = gains_by_bfloat16(device) and products(module, rows) >= REPAYS_BFLOAT16[device.type]
    return torch.bfloat16 if precision == "bfloat16" or repaid else None


def fits(size: int, device: torch.device) -> bool:
    """Whether rows of so many bytes may stay on a device: on a GPU, in half of its free memory.

    Free is also what torch keeps for reuse, and nothing uses.
    """
    if device.type != "cuda":
        return True
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return size <= FREE_FOR_ROWS * (torch.cuda.mem_get_info(device)[0] + kept)


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """A stream of one's own on a GPU, as graphs can be recorded on no other, in the body of a `with`."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.current_stream(device)
    own = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    own.wait_stream(before)
    try:
        with torch.cuda.stream(own):
            yield
    finally:
        before.wait_stream(own)


@contextmanager
def tensor_float(device: torch.device, allowed: bool) -> Iterator[None]:
    """Whether a GPU multiplies float32 in TF32, with 10 bits of a factor's 23, in the body of a `with`.

    That is 8 times as fast on an H100, and more precise than the bfloat16 that large work gets: what `auto` stands for.
    Who asks for float32 gets float32.
    """
    if device.type != "cuda":
        yield
        return
    # read by torch's new names and set by its old ones, which set both: it refuses settings that contradict each other
    products, layers = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.fp32_precision == "tf32", layers.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    products.allow_tf32, layers.allow_tf32 = allowed, allowed
    try:
        yield
    finally:
        products.allow_tf32, layers.allow_tf32 = before


@contextmanager
def threads_for(module: nn.Module, rows: int) -> Iterator[None]:
    """One thread where a step is too small to share, torch's own number elsewhere; as it was at the end."""
    before = torch.get_num_threads()
    if products(module, rows) < REPAYS_THREADS and before > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Numbers below 1.2e-38 count as zero in the body of a `with`.

    Averages that Adam keeps of vanished gradients decay to such numbers, which processors handle slowly: a step took
    up to 35 times as long.
    """
    before = bool((torch.tensor([1e-40]) * 1.0 == 0).item())
    _flush_denormals(True)
    try:
        yield
    finally:
        if not before:
            _flush_denormals(False)


def _flush_denormals(on: bool) -> None:
    """Set the flag in this thread and in the threads that torch computes with.

    Those of GNU's OpenMP take it over from this thread when they are made, and not later; so they are let go.
    """
    torch.set_flush_denormal(on)
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).omp_pause_resource_all(1)  # 1: softly; the next parallel product makes new threads


@contextmanager
def memory_kept() -> Iterator[None]:
    """What torch frees in the body of a `with` is used again, up to 128 MB of it; at the end it is given back.

    The allocator of glibc asks the system for the matrices of a step, gives them back and asks for them anew, and each
    page of theirs is cleared each time: Muon's part of a step of 784-1000-500-250-30 took 50 ms in place of 43. Its
    thresholds cannot be read, so they stay as they are set here.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "mallopt"):  # another allocator, musl's among them
        yield
        return
    for name, value in ((MMAP_THRESHOLD, 32 << 20), (TRIM_THRESHOLD, 128 << 20), (TOP_PAD, 64 << 20)):
        library.mallopt(name, value)
    try:
        yield
    finally:
        library.mallopt(TOP_PAD, 0)
        library.malloc_trim(0)
