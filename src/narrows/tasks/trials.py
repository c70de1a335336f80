"""What a study searches, and one trial of it: settings -> a short fit, judged on the way, given up where hopeless.

Settings are plain numbers and words by name, as a journal keeps them. What this file does not know: which settings to
try next, and what other trials came to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from narrows.fitting import Plan
from narrows.model.autoencoder import AutoencoderModule
from narrows.model.recipe import Recipe
from narrows.networks.choice import Network
from narrows.networks.dense import Dense
from narrows.schema import Batch, Schema
from narrows.sizing import LARGEST, Judge, Sizing
from narrows.train.devices import choose_device
from narrows.train.optimizers import DEFAULT_RATES
from narrows.train.settings import Record

WIDTHS, DEPTH = (32, 64, 128, 256, 512), 2  # of hidden layers; at most so many each way
BATCHES = (32, 64, 128, 256, 512)
RATES = (0.1, 10.0)  # times the optimizer's own learning rate: beyond, nothing trains
STEPS = 1_000  # of a trial; twice those of choosing a size alone, since rates and widths settle later
LOOKS = 10  # times that a trial is judged while it trains
DIALS = {"noise": (0.01, 1.0), "mask": (0.05, 0.6), "rate": (0.1, 0.9)}  # of corruptions, where the recipe has them


@dataclass(frozen=True)
class Trial:
    """What every trial of a study shares.

    Args:
        plan: what was asked for: a size, hidden widths or a rate that are given there are not searched.
        schema: of the prepared rows.
        rows: to train on.
        held: to judge by.
    """

    plan: Plan
    schema: Schema
    rows: Batch
    held: Batch

    @property
    def judge(self) -> Judge:
        """Judges modules by the same rows and hidden cells."""
        return Judge(self.held, Recipe.parse(self.plan.recipe), int(self.plan.seed))

    @property
    def searched(self) -> dict[str, tuple[str, Any]]:
        """Setting -> `whole`, `number` (both on a log scale) or `one`, and its bounds or words."""
        space: dict[str, tuple[str, Any]] = {}
        network, recipe = Network.of(self.plan.network), Recipe.parse(self.plan.recipe)
        if self.plan.latent in (None, "auto"):
            space["latent"] = "whole", (1, max(1, min(LARGEST, self.schema.cells)))
        if network.kind in ("auto", "dense") and network.dense == Dense() and not recipe.slots().linear:
            space |= {"depth": ("one", tuple(range(DEPTH + 1))), "width": ("one", WIDTHS)}
        if self.plan.lr is None:
            space["lr_times"] = "number", RATES
        if self.plan.training.batch_size is None:
            space["batch_size"] = "one", tuple(size for size in BATCHES if size <= max(32, len(self.rows) // 8))
        dials = recipe.arguments if recipe.name in ("denoising", "masked") else {}
        return space | {name: ("number", DIALS[name]) for name in DIALS if dials.get(name)}

    def planned(self, settings: Mapping[str, Any]) -> Plan:
        """The plan with these settings in it."""
        plan, recipe = self.plan, Recipe.parse(self.plan.recipe)
        dials = {name: settings[name] for name in DIALS if name in settings}
        if dials:
            plan = replace(plan, recipe=Recipe.of(recipe.name, {**recipe.arguments, **dials}))
        if "depth" in settings:
            hidden = (int(settings["width"]),) * int(settings["depth"])
            network = Network.of(plan.network)
            plan = replace(plan, network=replace(network, dense=replace(network.dense, hidden=hidden)))
        if "lr_times" in settings:
            plan = replace(plan, lr=float(f"{settings['lr_times'] * base_rate(plan):.3g}"))
        if "batch_size" in settings:
            plan = replace(plan, training=replace(plan.training, batch_size=int(settings["batch_size"])))
        return replace(plan, latent=int(settings["latent"])) if "latent" in settings else plan

    def run(self, settings: Mapping[str, Any], report: Callable[[int, float], bool], until: float) -> np.ndarray | None:
        """(n,) costs of the held-out rows; None for a trial that was given up.

        Args:
            settings: by name.
            report: told how often it was judged and the mean cost; whether to give up.
            until: `time.monotonic()` at which to give up.

        Raises:
            TrainingError: where the loss is not finite.
            SettingError: for settings that do not fit together.
        """
        plan = self.planned(settings)
        recipe, network = Recipe.parse(plan.recipe), Network.of(plan.network)
        device = choose_device(plan.device)
        sizing = Sizing(self.schema, recipe, network, plan.training, plan.lr, int(plan.seed), device)
        judge, looks, gave_up = self.judge, 0, False

        def heed(module: AutoencoderModule, record: Record) -> bool:
            nonlocal looks, gave_up
            done = int(record.get("step", 0))
            if time.monotonic() > until:
                gave_up = True
            elif done * LOOKS >= (looks + 1) * STEPS:
                looks += 1
                gave_up = report(looks, float(judge.costs(module).mean()))
            return gave_up

        module = sizing.fitted(int(plan.latent or 1), self.rows, STEPS, heed)
        return None if gave_up else judge.costs(module)


def base_rate(plan: Plan) -> float:
    """The learning rate that the optimizer has by itself; of `auto` that of muon, which tables get."""
    name = plan.training.optimizer
    return float(DEFAULT_RATES["muon" if name == "auto" else name])
