"""Parts of detectors that were damaged are refused when they are read, not when rows come."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.errors import ModelFileError
from narrows.fitted import Model, Part
from narrows.tasks.detect import PART, Detector
from odd_rows import correlated, fitted, mixed, prepared

# by the judges that they have: of mixed tables, of normal rows, of series, of pictures
KINDS = ("mixed", "normal", "series", "pictures")


def model_of(kind: str) -> Model:
    if kind == "mixed":
        return fitted(mixed(300).mask(torch.rand(300, 6, generator=torch.Generator().manual_seed(0)).numpy() < 0.02))
    if kind == "normal":
        return fitted(correlated(300), all_normal=True)
    waves = torch.sin(torch.arange(12.0) + 6 * torch.rand(300, 1, generator=torch.Generator().manual_seed(0)))
    if kind == "series":
        return fitted(waves.numpy(), columns={"x": "series"}, epochs=2)
    return fitted(waves.view(300, 4, 3, 1).expand(300, 4, 3, 3).numpy(), columns={"x": "image"}, epochs=2)


MODELS: dict[str, Model] = {}


def model(kind: str) -> Model:
    """Fitted once, when it is first asked for."""
    if kind not in MODELS:
        MODELS[kind] = model_of(kind)
    return MODELS[kind]


def with_part(kind: str, part: Part) -> Detector:
    """The detector of a model with another part."""
    return Detector.of(replace(model(kind), parts={PART: part}))


def refusal(kind: str, part: Part) -> str:
    """What is said of a part; empty where it is believed."""
    try:
        with_part(kind, part)
    except ModelFileError as error:
        return str(error)
    return ""


def refused(kind: str, part: Part, what: str) -> None:
    """A part is refused; `what` says in a failure what was done to it."""
    assert refusal(kind, part).startswith("part detect of the model: "), f"{kind}: {what} was believed"


def damages(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """A tensor as it must not be."""
    found = {"longer": torch.cat([tensor, tensor.new_zeros(1, *tensor.shape[1:])]), "deeper": tensor[None]}
    if len(tensor):
        found |= {"cut": tensor[:-1], "empty": tensor[:0], "flat": tensor[0]}
    if tensor.ndim > 1:
        found |= {"narrower": tensor[:, 1:], "wider": torch.cat([tensor, tensor[:, :1]], 1)}
        found |= {"turned": tensor.mT} if tensor.shape != tensor.mT.shape else {}
    if tensor.is_floating_point():
        found |= {"NaN": tensor.clone().fill_(math.nan), "infinite": tensor.clone().fill_(math.inf)}
        found |= {"whole": tensor.long(), "half": tensor.half()}
    else:
        found |= {"floating": tensor.float(), "far": tensor.long() + 99}
    return found


# what may be of any length
FREE = {
    ("calibration", "cut"),
    ("calibration", "longer"),
    ("neighbors.points", "cut"),
    ("neighbors.points", "longer"),
}


@pytest.mark.filterwarnings("ignore::narrows.errors.FitWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_checked(kind):
    part = model(kind).parts[PART]
    for name, tensor in part.tensors.items():
        refused(kind, Part(part.facts, {key: each for key, each in part.tensors.items() if key != name}), name)
        for change, broken in damages(tensor).items():
            same = broken.shape == tensor.shape and broken.dtype == tensor.dtype and torch.equal(broken, tensor)
            if not same and (name, change) not in FREE:
                refused(kind, Part(part.facts, {**part.tensors, name: broken}), f"{name} {change}")


WRONG = {
    "judges": [[], ["distance", "fortune"], "distance", None, [1], [["distance"]]],
    "bent": [None, "yes", 2],
    "threshold": [None, "high", math.nan, math.inf],
    "network": ["asked", None, 1],
    "why": [None, 3],
    "errors": [None, {"trained": "small"}, [1.0]],
    "share": ["half", None],
    "calibrated": ["by hand", None],
    "contamination": ["none", None, [0.1]],
}


@pytest.mark.parametrize("name", WRONG)
def test_every_fact_is_checked(name):
    part = model("mixed").parts[PART]
    refused("mixed", Part({key: fact for key, fact in part.facts.items() if key != name}, part.tensors), name)
    for fact in WRONG[name]:
        refused("mixed", Part({**part.facts, name: fact}, part.tensors), f"{name}={fact}")
    refused("mixed", Part({**part.facts, "more": 1}, part.tensors), "more")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_numbers_that_were_hit_are_refused_or_give_finite_scores(data):
    part = model("mixed").parts[PART]
    name = data.draw(st.sampled_from(sorted(part.tensors)))
    broken = part.tensors[name].clone()
    place = data.draw(st.integers(0, broken.numel() - 1))
    value = data.draw(st.sampled_from([0, 1, -1, 3, 1e9, -1e9, 1e30, math.nan]))
    broken.view(-1)[place] = 0 if broken.dtype != torch.float64 and broken.dtype != torch.float32 else value
    hit = Part(part.facts, {**part.tensors, name: broken})
    if not refusal("mixed", hit):
        detector = with_part("mixed", hit)
        assert not detector.scores(prepared(detector.model, mixed(20))).isnan().any()
