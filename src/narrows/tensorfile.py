"""Tensors and facts in one safetensors file, written whole or not at all, and checked when read.

Used for models and for checkpoints. The facts are one JSON text under one metadata key (safetensors writes several
keys in random order), with sorted keys, so equal contents are equal bytes. A checksum over facts and tensors tells
damage from data; it is no signature, and loading never runs code, so a file from a stranger can at worst be wrong.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file
from torch import Tensor

from narrows.errors import ModelFileError
from narrows.files import atomic

FORMAT = 2  # 1: dense networks alone, no readings
KEY = "narrows"


def write(path: str | Path, kind: str, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write facts and tensors to `path`, atomically.

    Args:
        path: of the file; replaced if it is there.
        kind: what the file is (`model`, `checkpoint`), so that one is not taken for the other.
        facts: plain JSON values; no NaN.
        tensors: name -> tensor; copied to the CPU.

    Raises:
        NarrowsError: when the file cannot be written; nothing is left behind.
    """
    stored = _apart(tensors)
    header = {"format": FORMAT, "kind": kind, "facts": dict(facts)}
    header["checksum"] = checksum(header, stored)
    with atomic(path) as temporary:
        mode = temporary.stat().st_mode
        save_file(stored, temporary, metadata={KEY: dumps(header)})
        temporary.chmod(mode)  # safetensors makes files that only their owner may read


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each with memory of its own: tied weights share theirs, which safetensors refuses."""
    stored: dict[str, Tensor] = {}
    met = set()
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous()
        memory = flat.untyped_storage().data_ptr()
        stored[name] = flat.clone() if memory in met else flat
        met.add(memory)
    return stored


def pack(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """Facts and tensors as bytes, to be sent and not kept."""
    return save(_apart(tensors), metadata={KEY: dumps(facts)})


def unpack(message: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `pack` was given."""
    length = int.from_bytes(message[:8], "little")  # of the header, as safetensors says it
    facts: dict[str, Any] = json.loads(json.loads(message[8 : 8 + length])["__metadata__"][KEY])
    return facts, load(message)


def read(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and tensors of the file that `write` wrote.

    Raises:
        ModelFileError: for a file that is missing, damaged, foreign, of another kind or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"{path} is a folder" if path.is_dir() else f"no file {path}", f"a {kind} file")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
            header = _header(path, kind, text)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError, MemoryError, RuntimeError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(
            f"{path} is cut short, damaged or no {kind} file ({error})",
            f"a {kind} written by Narrows",
            "write it again",
        ) from None
    if header.pop("checksum", None) != checksum(header, tensors):
        raise ModelFileError(
            f"{path} is damaged: its contents do not match its checksum", hint="write or copy it again"
        )
    facts: dict[str, Any] = header["facts"]
    return facts, tensors


def _header(path: Path, kind: str, text: str | None) -> dict[str, Any]:
    """The checked JSON of a file."""
    foreign = ModelFileError(f"{path} was not written by Narrows", f"a {kind} file")
    if text is None:
        raise foreign
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise ModelFileError(f"{path} is damaged: its facts are not JSON", hint="write or copy it again") from None
    if not isinstance(header, dict) or not isinstance(header.get("format"), int):
        raise foreign
    if header["format"] > FORMAT:
        raise ModelFileError(
            f"{path} has format {header['format']}", f"format {FORMAT} or older", "a newer version of narrows"
        )
    if header.get("kind") != kind or not isinstance(header.get("facts"), dict):
        raise ModelFileError(f"{path} is a {header.get('kind')} file", f"a {kind} file")
    return header


def checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the facts and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(dumps(header).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        if tensor.numel():  # torch cannot look at nothing as bytes
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def dumps(facts: Mapping[str, Any]) -> str:
    """JSON with sorted keys and no spaces: equal facts, equal text."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def shaped(tensors: Mapping[str, Tensor], kind: torch.dtype = torch.float32, **shapes: tuple[int, ...]) -> list[Tensor]:
    """Tensors by name, in order, once they were found to be of this type and of these shapes; -1 is any length but 0.

    Raises:
        KeyError: for one that is missing.
        ValueError: for one of another shape or type, or with NaN or infinity.
    """
    for name, shape in shapes.items():
        tensor = tensors[name]
        same = len(shape) == tensor.ndim and all(
            size == wanted or (wanted == -1 and size) for size, wanted in zip(tensor.shape, shape, strict=True)
        )
        if not same or tensor.dtype != kind:
            raise ValueError(f"{name} of shape {tuple(tensor.shape)} ({tensor.dtype}), not {shape} ({kind})")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} with NaN or infinity")
    return [tensors[name] for name in shapes]


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
