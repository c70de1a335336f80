"""Narrows: autoencoders for large, messy data.

Public names are loaded when they are first used, so that `import narrows` costs nothing.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from narrows.denoiser import Denoiser
    from narrows.detector import AnomalyDetector
    from narrows.errors import DataError, ModelFileError, NarrowsError, SettingError, TrainingError
    from narrows.estimators import Autoencoder, Generator
    from narrows.fitted import Model, load
    from narrows.fitting import Plan
    from narrows.imputer import Imputer
    from narrows.model.recipe import Recipe
    from narrows.networks.choice import Network
    from narrows.networks.conv import Conv
    from narrows.networks.dense import Dense
    from narrows.networks.recurrent import Recurrent
    from narrows.networks.transformer import Transformer
    from narrows.report.page import report as write_report
    from narrows.sources.reading import Reading
    from narrows.sources.source import Source, open_source
    from narrows.sources.write import write_rows
    from narrows.tasks.baseline import learn_baseline
    from narrows.tasks.denoise import denoise, denoise_whole
    from narrows.tasks.diagnosis import fit
    from narrows.tasks.drift import drift
    from narrows.tasks.evaluate import evaluate
    from narrows.tasks.generate import generate, interpolate
    from narrows.tasks.impute import impute
    from narrows.tasks.pooling import Pooled, pooled_means
    from narrows.tasks.prior import keep_prior, learn_prior, prior_of
    from narrows.tasks.privacy import privacy
    from narrows.tasks.probe import Probe, probe
    from narrows.tasks.verdicts import detect
    from narrows.train.settings import Training, Watch

# Torch's OpenMP threads spin for milliseconds at the end of every product. Where another program has one of the cores,
# that made a training step 15 to 21 times longer on two cores (417 and 1034 ms against 28 and 49). Threads that sleep
# at once take long to wake in a virtual machine: of 1,000, 5,000 and 10,000 spins, a variational network learnt MNIST
# in 8.8, 5.7 and 5.6 s, 10.5, 13.4 and 18 s beside another program; a recurrent step took 65, 26 and 25 ms, 46, 95 and
# 132. Read when torch is loaded, so this works for `import narrows` before `import torch`.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

# Arrow's own allocator gives memory back between the windows of a stream, to be asked for anew: reading 32 numbers a
# row took 0.22 microseconds in place of 0.11.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

__version__ = "0.1.0"

_HOMES = {
    "AnomalyDetector": "narrows.detector",
    "Autoencoder": "narrows.estimators",
    "Conv": "narrows.networks.conv",
    "DataError": "narrows.errors",
    "Denoiser": "narrows.denoiser",
    "Dense": "narrows.networks.dense",
    "Generator": "narrows.estimators",
    "Imputer": "narrows.imputer",
    "Model": "narrows.fitted",
    "ModelFileError": "narrows.errors",
    "NarrowsError": "narrows.errors",
    "Network": "narrows.networks.choice",
    "Plan": "narrows.fitting",
    "Pooled": "narrows.tasks.pooling",
    "Probe": "narrows.tasks.probe",
    "Reading": "narrows.sources.reading",
    "Recipe": "narrows.model.recipe",
    "Recurrent": "narrows.networks.recurrent",
    "SettingError": "narrows.errors",
    "Source": "narrows.sources.source",
    "Training": "narrows.train.settings",
    "TrainingError": "narrows.errors",
    "Transformer": "narrows.networks.transformer",
    "Watch": "narrows.train.settings",
    "denoise": "narrows.tasks.denoise",
    "denoise_whole": "narrows.tasks.denoise",
    "detect": "narrows.tasks.verdicts",
    "drift": "narrows.tasks.drift",
    "evaluate": "narrows.tasks.evaluate",
    "fit": "narrows.tasks.diagnosis",
    "generate": "narrows.tasks.generate",
    "impute": "narrows.tasks.impute",
    "interpolate": "narrows.tasks.generate",
    "keep_prior": "narrows.tasks.prior",
    "learn_baseline": "narrows.tasks.baseline",
    "learn_prior": "narrows.tasks.prior",
    "load": "narrows.fitted",
    "open_source": "narrows.sources.source",
    "pooled_means": "narrows.tasks.pooling",
    "prior_of": "narrows.tasks.prior",
    "privacy": "narrows.tasks.privacy",
    "probe": "narrows.tasks.probe",
    "write_rows": "narrows.sources.write",
}

__all__ = [
    "AnomalyDetector",
    "Autoencoder",
    "Conv",
    "DataError",
    "Denoiser",
    "Dense",
    "Generator",
    "Imputer",
    "Model",
    "ModelFileError",
    "NarrowsError",
    "Network",
    "Plan",
    "Pooled",
    "Probe",
    "Reading",
    "Recipe",
    "Recurrent",
    "SettingError",
    "Source",
    "Training",
    "TrainingError",
    "Transformer",
    "Watch",
    "__version__",
    "denoise",
    "denoise_whole",
    "detect",
    "drift",
    "evaluate",
    "fit",
    "generate",
    "impute",
    "interpolate",
    "keep_prior",
    "learn_baseline",
    "learn_prior",
    "load",
    "open_source",
    "pooled_means",
    "prior_of",
    "privacy",
    "probe",
    "write_report",
    "write_rows",
]


def __getattr__(name: str) -> Any:
    if name == "write_report":  # `narrows.report` is the room that it lives in
        return import_module("narrows.report.page").report
    if name not in _HOMES:
        raise AttributeError(f"module 'narrows' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
