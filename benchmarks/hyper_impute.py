"""HyperImpute (Jarrett et al. 2022) on arrays, for `imputation.py`; run by a Python that has it (`hyperimpute.txt`).

Fits on `train` of arrays.npz in a folder and fills `test` as `filled.npy`. Prints the seconds of both as JSON.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from hyperimpute.plugins.imputers import Imputers

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    arrays = np.load(folder / "arrays.npz")
    began = time.perf_counter()
    plugin = Imputers().get("hyperimpute", random_state=0)
    plugin.fit(pd.DataFrame(arrays["train"]))
    filled = plugin.transform(pd.DataFrame(arrays["test"]))
    seconds = time.perf_counter() - began
    np.save(folder / "filled.npy", np.asarray(filled, float))
    print(json.dumps({"seconds": seconds}))
