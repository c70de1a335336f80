"""Code size and settings by trials: Optuna proposes, short fits are judged by hidden cells, a journal remembers.

    rows -> a sample: training | held out -> trials (TPE, median pruning) -> journal -> one-standard-error rule -> fit

The journal lies in a folder that other processes may share: each takes the next trial, and a study that was killed goes
on where it stood. The model is fitted anew on all rows, beside one of the defaults, and the better one kept. What this
file does not know: what is searched (`trials`).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from math import inf
from numbers import Integral
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from narrows import world
from narrows.errors import DataError, NarrowsError, SettingError, TrainingError
from narrows.fitted import Model, Part
from narrows.fitting import HELD_OUT, Plan, default_latent
from narrows.model.recipe import Recipe
from narrows.networks.choice import Network
from narrows.prepare.gathered import Thinned
from narrows.rows import Rows
from narrows.sizing import JUDGED, MOST, PART, facts, halves, one_standard_error, scored
from narrows.sources.source import open_source
from narrows.tasks.diagnosis import fit
from narrows.tasks.trials import Trial
from narrows.tasks.tuned import KEPT, USUAL
from narrows.train.devices import choose_device
from narrows.train.settings import Watch

if TYPE_CHECKING:
    import optuna

JOURNAL, COSTS = "journal.log", "costs"
SILENT = 3600.0  # seconds without a look after which a trial of another machine is taken for dead
RETRIES = 1  # of settings whose trial died
STARTUP = 5  # trials that are drawn at random, and that prune nobody
Told = Callable[[dict[str, Any], int], None]


def tune(
    data: Any,
    plan: Plan | None = None,
    *,
    trials: int = 30,
    time_limit: float | None = None,
    folder: str | Path | None = None,
    told: Told | None = None,
    watch: Watch | None = None,
) -> Model:
    """A model whose code size and settings were chosen by trials, fitted on all rows; its part `tune` says how.

    What one would get without tuning is fitted as well, and kept where it tells the rows that judge better.

    Args:
        data: anything `open_source` takes; trials use at most 8,192 of its rows and 2,048 that judge.
        plan: what is given there is kept: recipe, size, network, rate, batch size; the rest is searched.
        trials: that the study is to have in all, those of other processes and of earlier calls counted.
        time_limit: seconds for the trials of this call; two whole fits come on top. None for no limit.
        folder: of the journal, to go on from and to share; None keeps it nowhere.
        told: called after each trial with its facts and the number of trials that are done.
        watch: looks on at the fit of what was chosen.

    Raises:
        SettingError: without Optuna, for less than one trial, a folder with a study of other data or settings, or a
            time limit in which no trial ended.
        DataError: for too few rows to hold some out.
        TrainingError: where every trial failed.
    """
    if not (isinstance(trials, Integral) and trials >= 1):
        raise SettingError(f"trials={trials!r}", "a whole number of at least 1")
    if time_limit is not None and not 0 < time_limit < inf:
        raise SettingError(f"time_limit={time_limit!r}", "seconds above 0, or None")
    if world.size() > 1:
        raise SettingError("tuning under a launcher", "one process", "the same command twice, with the same --folder")
    _optuna()
    plan = plan or Plan()
    plan.check()
    with TemporaryDirectory() as nowhere:
        study = Study(data, plan, Path(folder or nowhere))
        study.run(int(trials), time_limit, told or (lambda facts, done: None))
        part = study.part()
        best = study.best_plan(part)
        judge = study.trial.judge
    model = fit(data, best, watch=watch)
    usual = fit(data, replace(plan, latent=None) if plan.latent == "auto" else plan)
    costs = {KEPT: float(judge.costs(model.module).mean()), USUAL: float(judge.costs(usual.module).mean())}
    if costs[USUAL] < costs[KEPT]:  # short trials like what learns soon: that need not be what learns most
        model = usual
    part.facts.update(latent=model.latent, fitted=costs)
    model.parts[PART] = part
    return model


class Study:
    """Trials on one sample of rows, kept in a folder that processes share.

    Args:
        data: anything `open_source` takes.
        plan: what was asked for.
        folder: of the journal; made where it is not there.

    Raises:
        SettingError: for a folder with a study of other data or settings.
        DataError: for too few rows.
    """

    def __init__(self, data: Any, plan: Plan, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        rows = Rows(open_source(data), _held_out(plan), plan.training, plan.seed, plan.columns)
        rows.streams(choose_device("cpu"))
        self.trial = Trial(plan, rows.preparer.schema, *_sample(rows, plan.seed))
        about = {"data": rows.fingerprint, "plan": _said(plan)}
        try:
            (folder / COSTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NarrowsError(f"{folder}: {error.strerror}", "a folder that can be written to") from None
        self.study = self._open(about)
        self.worker = f"{socket.gethostname()}:{os.getpid()}"

    def _open(self, about: dict[str, str]) -> optuna.Study:
        """The study in the folder, new or gone on with."""
        found = _optuna()
        backend = found.storages.journal.JournalFileBackend(str(self.folder / JOURNAL))
        seed = (int(self.plan.seed) + 7919 * _rank(self.folder)) % 2**32
        study: optuna.Study = found.create_study(
            study_name="tune",
            storage=found.storages.JournalStorage(backend),
            sampler=found.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, constant_liar=True),
            pruner=found.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=2),
            load_if_exists=True,
        )
        for what, ours in about.items():
            theirs = study.user_attrs.get(what)
            if theirs is None:
                study.set_user_attr(what, ours)
            elif theirs != ours:
                got = f"{self.folder} has a study of other {'data' if what == 'data' else 'settings'}"
                raise SettingError(got, "one of these", "another --folder, or remove this one")
        if not study.trials:  # what one would get without tuning is the first to be beaten
            study.enqueue_trial(self._defaults(), skip_if_exists=True)
        return study

    def _defaults(self) -> dict[str, Any]:
        """Settings near those that a plain fit would have, as far as they are searched."""
        usual = {"latent": default_latent(self.trial.schema), "depth": 1, "width": 128, "lr_times": 1.0}
        usual["batch_size"] = self.plan.training.step_rows(len(self.trial.rows))
        usual |= {name: value for name, value in Recipe.parse(self.plan.recipe).arguments.items() if value}
        space = self.trial.searched
        return {name: usual[name] for name, (kind, allowed) in space.items() if kind != "one" or usual[name] in allowed}

    def run(self, trials: int, time_limit: float | None, told: Told) -> None:
        """Trials until the study has so many, or the time is over.

        Raises:
            SettingError: for a time limit in which none ended.
            TrainingError: where every trial failed.
        """
        until = inf if time_limit is None else time.monotonic() + time_limit
        failed = 0
        while self.done(running=True) < trials and time.monotonic() < until and failed <= trials:
            self._bury()
            trial = self.study.ask()
            failed += not self._tried(trial, until)
            told(self._facts(self.study.trials[trial.number]), self.done())
        if not any(self._kept(trial) is not None for trial in self.study.trials):
            if failed > trials:
                raise TrainingError("every trial failed; the last: " + self._last_failure())
            got = f"no trial ended within {time_limit:g} seconds" if time_limit else "no trial that ended"
            raise SettingError(got, "time for at least one", "a longer --time-limit, or fewer rows")

    def done(self, running: bool = False) -> int:
        """Trials that ended with a cost or were given up as hopeless; on request with those that others run now."""
        names = {"COMPLETE", "PRUNED"} | ({"RUNNING"} if running else set())
        return sum(
            trial.state.name in names and not (trial.state.name == "RUNNING" and self._dead(trial))
            for trial in self.study.trials
        )

    def _tried(self, trial: optuna.Trial, until: float) -> bool:
        """Run a trial and write down how it ended; whether it did not fail."""
        trial.set_user_attr("worker", self.worker)
        trial.set_user_attr("beat", time.time())

        def report(look: int, cost: float) -> bool:
            trial.report(cost, look)
            trial.set_user_attr("beat", time.time())
            return bool(trial.should_prune())

        states = _optuna().trial.TrialState
        try:
            costs = self.trial.run(self._settings(trial), report, until)
        except (NarrowsError, RuntimeError, MemoryError) as error:
            trial.set_user_attr("why", str(error)[:300])
            self.study.tell(trial, state=states.FAIL)
            self._again(self.study.trials[trial.number])
            return False
        except BaseException:  # Ctrl-C: nobody need wait to find this trial dead
            self.study.tell(trial, state=states.FAIL)
            raise
        if costs is not None and np.isfinite(costs).all():
            np.save(self.folder / COSTS / f"{trial.number}.npy", costs.astype(np.float32), allow_pickle=False)
            trial.set_user_attr("error", scored(costs)["error"])
            self.study.tell(trial, float(costs.mean()))
        else:
            over = time.monotonic() > until
            self.study.tell(trial, state=states.FAIL if over or not trial.number else states.PRUNED)
        return True

    def _settings(self, trial: optuna.Trial) -> dict[str, Any]:
        """What the sampler proposes, by name."""
        settings: dict[str, Any] = {}
        for name, (kind, allowed) in self.trial.searched.items():
            if kind == "one":
                settings[name] = trial.suggest_categorical(name, allowed)
            elif kind == "whole":
                settings[name] = trial.suggest_int(name, *allowed, log=True)
            else:
                settings[name] = trial.suggest_float(name, *allowed, log=True)
        return settings

    def _bury(self) -> None:
        """Mark trials whose process is gone as failed, and put their settings forward again."""
        states = _optuna().trial.TrialState
        for trial in self.study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            if self._dead(trial):
                with suppress(ValueError, RuntimeError):  # another worker was faster
                    self.study.tell(trial.number, state=states.FAIL)
                    self._again(trial)

    def _again(self, trial: optuna.trial.FrozenTrial) -> None:
        """Put the settings of a trial that died forward once more."""
        tried = int(trial.user_attrs.get("retry", 0))
        if tried < RETRIES and trial.params:
            self.study.enqueue_trial(trial.params, user_attrs={"retry": tried + 1})

    def _dead(self, trial: optuna.trial.FrozenTrial) -> bool:
        """Whether the process of a running trial is gone; of another machine's, whether it fell silent."""
        host, _, process = str(trial.user_attrs.get("worker", "")).rpartition(":")
        if host != socket.gethostname():
            return time.time() - float(trial.user_attrs.get("beat", time.time())) > SILENT
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def _kept(self, trial: optuna.trial.FrozenTrial) -> np.ndarray | None:
        """The costs of a trial that ended; None for others."""
        path = self.folder / COSTS / f"{trial.number}.npy"
        if trial.state.name != "COMPLETE" or not path.exists():
            return None
        costs: np.ndarray = np.load(path, allow_pickle=False).astype(np.float64)
        return costs

    def _facts(self, trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
        """A trial for people and files: settings, cost, standard error, how it ended."""
        latent = trial.params.get("latent", self.plan.latent or default_latent(self.trial.schema))
        ended = {"trial": trial.number, "state": trial.state.name.lower(), "latent": latent, **trial.params}
        if trial.state.name == "COMPLETE" and trial.value is not None:
            ended |= {"score": float(f"{trial.value:.6g}"), "error": trial.user_attrs.get("error", 0.0)}
        return ended

    def _last_failure(self) -> str:
        said = [trial.user_attrs["why"] for trial in self.study.trials if "why" in trial.user_attrs]
        return said[-1] if said else "unknown"

    def part(self) -> Part:
        """The part `tune`: every trial, and the one that was chosen.

        The best trial of each size stands for it; of these the one-standard-error rule takes the smallest.
        """
        best: dict[int, tuple[float, int]] = {}
        costs: dict[int, np.ndarray] = {}
        for trial in self.study.trials:
            each = self._kept(trial)
            if each is not None:
                latent, mean = int(self._facts(trial)["latent"]), float(each.mean())
                if mean < best.get(latent, (inf, 0))[0]:
                    best[latent], costs[latent] = (mean, trial.number), each
        latent = one_standard_error(costs)
        lines = [self._facts(trial) for trial in self.study.trials if trial.state.is_finished()]
        told = facts("tune", self.trial.judge, len(self.trial.rows), latent, lines)
        return Part({**told, "chosen": best[latent][1]})

    def best_plan(self, part: Part) -> Plan:
        """The plan of the chosen trial."""
        params = self.study.trials[part.facts["chosen"]].params
        plan = self.trial.planned(params)
        return replace(plan, latent=int(part.facts["latent"]))


def _optuna() -> Any:
    """Optuna, which is imported where a study begins.

    Raises:
        SettingError: where it is not installed.
    """
    try:
        import optuna
        import optuna.storages.journal
    except ImportError:
        raise SettingError("tuning without Optuna", "the extra `tune`", "pip install 'narrows[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _held_out(plan: Plan) -> Any:
    share = plan.training.validation
    return HELD_OUT if share is None else share


def _sample(rows: Rows, seed: int) -> Any:
    """Prepared rows to train on, and to judge by."""
    thinned, held = Thinned(MOST + JUDGED), rows.prepared().held
    for batch in rows.prepared():
        thinned.add(batch)
    some = thinned.batch()
    if some is None:
        raise DataError("no rows to tune on", "at least one")
    return halves(some, held, int(seed))


def _said(plan: Plan) -> str:
    """What two calls must share to be of one study."""
    known: dict[str, Any] = {"recipe": str(Recipe.parse(plan.recipe)), "network": asdict(Network.of(plan.network))}
    known |= {"latent": plan.latent, "lr": plan.lr, "seed": plan.seed, "columns": dict(plan.columns)}
    return str(known | plan.training.get_params())


def _rank(folder: Path) -> int:
    """How many began on this folder before: each gets draws of its own."""
    rank = 0
    while True:
        try:
            (folder / f"worker-{rank}").touch(exist_ok=False)
            return rank
        except FileExistsError:
            rank += 1
