"""What a job asks of a fit: the recipe it would choose, the rows it trains on, what is learnt for it; `fit --for JOB`.

A task that wants a say here has a function of its own recipe and learners, and a line in `JOBS` and in `purpose_of` or
`PURPOSES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Real
from typing import Literal

import pyarrow as pa

from narrows.errors import SettingError
from narrows.fitted import Model
from narrows.fitting import Learner, Plan
from narrows.model.recipe import Recipe
from narrows.networks.choice import Network
from narrows.networks.dense import Dense
from narrows.prepare.words import ANY, ANY_SERIES
from narrows.rows import Core
from narrows.schema import Schema
from narrows.sources.reading import KIND, fact, modeled
from narrows.tasks.baseline import PART as BASELINE
from narrows.tasks.baseline import learn_baseline
from narrows.tasks.calibration import FEWEST
from narrows.tasks.detect import PART as DETECT
from narrows.tasks.detect import Detector
from narrows.tasks.detecting import learn_detector
from narrows.tasks.diagnosis import LEARNT
from narrows.tasks.hidden import learn_intervals, learn_normal
from narrows.tasks.holes import INTERVALS
from narrows.tasks.holes import PART as NORMAL
from narrows.tasks.ordinary import RECIPE, SHARE, core, steps_of, suit
from narrows.tasks.prior import PART as PRIOR
from narrows.tasks.prior import learn_prior
from narrows.tasks.reference import PART as DRIFT
from narrows.tasks.reference import learn_reference
from narrows.train.settings import Training

Contamination = float | Literal["auto"]
CALIBRATING = 0.2  # share of the rows that calibrate: of 250 rows the 50 that say what one false alarm in fifty is
COMPARED = 0.2  # share of the rows that new ones are compared with: what was trained on is told too well
KNOWN = 0.1  # where all rows are normal: each of them is worth more as a neighbor


@dataclass(frozen=True)
class Purpose:
    """What a job asks of a fit.

    Args:
        recipe: that it would choose.
        learn: name of a part -> what learns it from the training rows, in this order.
        core: the rows to train on; None for all.
        settle: the plan as the job wants it where the user left it open.
    """

    recipe: str = "plain"
    learn: Mapping[str, Learner] = field(default_factory=lambda: LEARNT)
    core: Core | None = None
    settle: Callable[[Plan], Plan] = lambda plan: plan


def detection(contamination: Contamination = "auto", all_normal: bool = False) -> Purpose:
    """What detecting anomalies asks of a fit.

    Args:
        contamination: share of the training rows to call anomalies, above 0 and up to 0.5; `auto` lets scores say it.
        all_normal: trains on all rows, for data that is known to hold no anomalies.

    Raises:
        SettingError: for a contamination out of range.
    """
    auto = isinstance(contamination, str) and contamination == "auto"
    if not auto and not (isinstance(contamination, Real) and 0 < float(contamination) <= 0.5):
        raise SettingError(f"contamination={contamination!r}", "auto, or a share above 0 and up to 0.5, such as 0.05")
    share = 1.0 if all_normal else SHARE
    learn = partial(learn_detector, share=share, contamination=None if auto else float(contamination))
    # no diagnosis: a network that is not to learn what is rare is under-trained on purpose, and has a guard of its own
    learners: dict[str, Learner] = {BASELINE: learn_baseline, DETECT: learn}
    return Purpose(RECIPE, learners, replace(core(share), held=FEWEST), partial(_to_detect, all_normal=all_normal))


def _to_detect(plan: Plan, all_normal: bool) -> Plan:
    training = plan.training
    if training.validation is None:
        training = replace(training, validation=KNOWN if all_normal else CALIBRATING)
    columns = {ANY: "minmax" if all_normal else "asinh", ANY_SERIES: "minmax", **plan.columns}
    return replace(plan, columns=columns, training=_undecayed(training), suit=suit)


def _undecayed(training: Training) -> Training:
    """Without weight decay, unless asked for: all else here was chosen so."""
    return replace(training, weight_decay=0.0) if training.weight_decay is None else training


CONDITIONAL, AUTO = "conditional", "auto"
WIDTH, NARROW = 256, 128  # of the layers that tell cells from each other, and where few rows are to be learnt from
FEW = 3_000  # rows
# Imputing, on 70 % of the training rows of eight tables, judged on the others: 400 steps of 128 rows at a width of 128
# told cells as well as 6,000 of 32 by Muon at 256 where there are fewer than 2,500 rows, at a tenth of the time; larger
# tables gained up to 2,000 steps and from the width.
# Numbers read in 16 pieces took letter's wrong levels there from 35.6 % to 31.8, adult's from 26.7 to 25.9; of few rows
# they are learnt by heart, and so were they by a booster that learnt from rows made so: California's R2 0.775 to 0.763.
PIECES = f"{CONDITIONAL}:pieces=16"
FILLED_ROWS, FILLED_VISITS = 128, 60  # of a step, and times that each row is met
FEWEST_STEPS, MOST_STEPS = 300, 6_000
# Rows of a step, and steps, where rows are to be made. On four fifths of California's training rows a booster that
# learnt from generated ones reached an R2 of 0.775 so, and of 0.758 by 6,000 steps of 128 rows. Not so imputing.
MADE_ROWS, MADE_STEPS = 512, 2_600
CELL_BY_CELL: dict[str, Learner] = {BASELINE: learn_baseline, NORMAL: learn_normal, INTERVALS: learn_intervals}


def _by_quantiles(plan: Plan) -> Plan:
    """Numbers by their quantiles, cells told from each other, where the user left it open."""
    plan = replace(plan, columns={ANY: "quantile", **plan.columns})
    return replace(plan, recipe=CONDITIONAL) if plan.recipe == AUTO else plan


def _telling(plan: Plan, width: int) -> Plan:
    """Of what is open, a residual network so wide, whose code is no narrower."""
    if Recipe.parse(plan.recipe).name != CONDITIONAL or Network.of(plan.network) != Network():
        return plan
    network = Network.of(Dense(hidden=(width, width), residual=True))
    return replace(plan, network=network, latent=plan.latent or width)


def _to_fill(plan: Plan) -> Plan:
    """What the columns leave open at once; the rest when rows have been counted."""
    plan = _by_quantiles(plan)
    if Recipe.parse(plan.recipe).name != CONDITIONAL:
        return plan
    return replace(_in_light_steps(plan), suit=_filling)


def _in_light_steps(plan: Plan) -> Plan:
    """By AdamW, as a step of Muon is many times the work at this width and rows."""
    training = plan.training
    if training.optimizer == "auto":
        training = replace(training, optimizer="adamw")
    return replace(plan, training=training, least_rows=plan.least_rows or FILLED_ROWS)


def _filling(plan: Plan, schema: Schema, rows: int) -> Plan:
    """A network and steps by how many rows there are; of many, numbers in pieces."""
    if rows >= FEW and plan.recipe == CONDITIONAL:
        plan = replace(plan, recipe=PIECES)
    return _as_many(_telling(plan, NARROW if rows < FEW else WIDTH), schema, rows)


def _to_fill_on(plan: Plan) -> Plan:
    """As a first fit, but for what it settled."""
    return replace(_in_light_steps(plan), suit=_as_many)


def _as_many(plan: Plan, schema: Schema, rows: int) -> Plan:
    """Steps by how many rows there are."""
    batch = max(plan.least_rows or 1, plan.training.step_rows(rows))
    return replace(plan, steps=plan.steps or min(max(FEWEST_STEPS, FILLED_VISITS * rows // batch), MOST_STEPS))


def _to_make_rows(plan: Plan) -> Plan:
    """Fewer and larger steps, of a wide network."""
    plan = _telling(_by_quantiles(plan), WIDTH)
    plan = replace(plan, training=_undecayed(plan.training))
    return replace(plan, least_rows=plan.least_rows or MADE_ROWS, steps=plan.steps or MADE_STEPS)


def generation(schema: pa.Schema | None, recipe: str | None = None, prior: str = "auto") -> Purpose:
    """What making rows asks of a fit: of tables a model that makes them cell by cell, else codes and their prior.

    Args:
        schema: of the source; None is no table.
        recipe: that the user chose; None or `auto` for none.
        prior: see `learn_prior`.
    """
    if (recipe in (None, AUTO) and _of_scalars(schema)) or (recipe or "").partition(":")[0] == CONDITIONAL:
        return Purpose(CONDITIONAL, CELL_BY_CELL, settle=_to_make_rows)
    learn: dict[str, Learner] = {**LEARNT, PRIOR: partial(learn_prior, kind=prior)}
    return Purpose("vae", learn, settle=lambda plan: replace(plan, recipe="vae") if plan.recipe == AUTO else plan)


def _of_scalars(schema: pa.Schema | None) -> bool:
    """Whether rows are single numbers, words, flags and dates."""
    if schema is None:
        return False
    entries = modeled(schema)
    hinted = any(fact(entry, KIND) for entry in entries)
    return not hinted and not any(
        pa.types.is_nested(e.type) or isinstance(e.type, pa.BaseExtensionType) for e in entries
    )


def _to_compare(plan: Plan) -> Plan:
    if plan.training.validation is not None:
        return plan
    return replace(plan, training=replace(plan.training, validation=COMPARED))


JOBS = ("denoise", "detect", "drift", "generate", "impute")
PURPOSES = {
    "denoise": Purpose("denoising:noise=0.1,mask=0"),
    "drift": Purpose("plain", {**LEARNT, DRIFT: learn_reference}, settle=_to_compare),
    "impute": Purpose(CONDITIONAL, CELL_BY_CELL, settle=_to_fill),
}


def purpose_of(
    job: str | None,
    contamination: Contamination = "auto",
    all_normal: bool = False,
    *,
    schema: pa.Schema | None = None,
    recipe: str | None = None,
) -> Purpose:
    """What a job asks of a fit; without one, a plain autoencoder and nothing more.

    Args:
        job: a word of `JOBS`.
        contamination: see `detection`.
        all_normal: see `detection`.
        schema: of the source, which generating wants to know; None for one of which nothing is known.
        recipe: that the user chose; None for none.

    Raises:
        SettingError: for a job that asks nothing of a fit, and for what is said of another job than this.
    """
    if job == "detect":
        return detection(contamination, all_normal)
    if contamination != "auto" or all_normal:
        raise SettingError("contamination or all-normal data without anomalies to detect", hint="--for detect")
    if job is None:
        return Purpose()
    if job == "generate":
        return generation(schema, recipe)
    if job not in PURPOSES:
        raise SettingError(f"fit for {job!r}", f"one of {', '.join(JOBS)}")
    return PURPOSES[job]


def going_on(model: Model) -> Purpose:
    """What going on from a model asks of a fit: that what it had learnt beside its weights is learnt anew.

    It trains on the rows that its first fit would have chosen, and learns the parts that it has; those that no fit
    learns are left out, and `narrows.fitting.fit` says so.
    """
    had = model.parts
    if DETECT in had:
        return _detecting_on(model)
    learners = dict(LEARNT)
    if PRIOR in had:
        learners[PRIOR] = learn_prior
    if NORMAL in had:
        learners |= {NORMAL: learn_normal, INTERVALS: learn_intervals}
    if DRIFT in had:
        learners[DRIFT] = learn_reference
    settle = _to_compare if DRIFT in had else _to_fill_on if NORMAL in had else Purpose().settle
    return Purpose(str(model.recipe), {name: learners[name] for name in learners if name in had}, settle=settle)


def _detecting_on(model: Model) -> Purpose:
    """That of a detector: by what it was told of anomalies, and in as few steps."""
    facts = Detector.of(model).facts
    normal, told = facts["share"] >= 1, facts["contamination"]
    first = detection(told, normal)
    learners = {name: learner for name, learner in first.learn.items() if name in model.parts}

    def settle(plan: Plan) -> Plan:
        steps = plan.steps or steps_of(model.recipe, model.schema)
        return replace(plan, training=_to_detect(plan, normal).training, steps=steps)

    return Purpose(str(model.recipe), learners, first.core, settle)
