"""What a job asks of a fit: the recipe it would choose, and the parts that are learnt for it; `fit --for JOB`.

A task that wants a say here has a function of its own recipe and learners, and a line in `PURPOSES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from narrows.errors import SettingError
from narrows.fitting import Learner
from narrows.tasks.prior import PART as PRIOR
from narrows.tasks.prior import learn_prior


@dataclass(frozen=True)
class Purpose:
    """What a job asks of a fit.

    Args:
        recipe: that it would choose.
        learn: name of a part -> what learns it from the training rows, beside what every fit learns.
    """

    recipe: str = "plain"
    learn: Mapping[str, Learner] = field(default_factory=dict)


PURPOSES = {"denoise": Purpose("denoising:noise=0.1,mask=0"), "generate": Purpose("vae", {PRIOR: learn_prior})}


def purpose_of(job: str | None) -> Purpose:
    """What a job asks of a fit; without one, a plain autoencoder and nothing more.

    Raises:
        SettingError: for a job that asks nothing of a fit.
    """
    if job is None:
        return Purpose()
    if job not in PURPOSES:
        raise SettingError(f"fit for {job!r}", f"one of {', '.join(PURPOSES)}")
    return PURPOSES[job]
