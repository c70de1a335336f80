"""Errors of rare groups with and without balanced training, on the adult census table.

    python benchmarks/balance.py --data DIR                     race and native-country, three seeds
    python benchmarks/balance.py race --data DIR --epochs 2     a short try

DIR holds `tabular/adult-train.csv.gz` and `tabular/adult-test.csv.gz`, without a header. A model with a code of four
numbers is trained on the first and evaluated on the second, which it never saw, as rows come and balanced by the
column with two powers; all else is left to its defaults. Told are the squared error a row, in prepared units, of all
rows and of each group, in the mean over seeds, and the share of wrong values of the column itself. Prints Markdown.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from narrows import Plan, Training, evaluate, fit

NAMES = ["age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship"]
NAMES += ["race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "income"]
POWERS = (0.5, 1.0)
SHOWN = 12  # groups of each table, the rarest


def table(path: Path) -> pd.DataFrame:
    """The rows; a full stop behind the test file's incomes is no other income."""
    rows = pd.read_csv(path, names=NAMES, skipinitialspace=True, comment="|")
    return rows.assign(income=rows["income"].str.rstrip("."))


def measured(data: Path, column: str, seeds: int, epochs: int | None) -> pd.DataFrame:
    """Group -> rows, errors and wrong values as rows come and by each power; means over seeds."""
    train, test = table(data / "tabular" / "adult-train.csv.gz"), table(data / "tabular" / "adult-test.csv.gz")
    trainings = {"": Training()} | {f" {p}": Training(balance=column, balance_power=p) for p in POWERS}
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(seeds):
        for name, training in trainings.items():
            model = fit(train, Plan(latent=4, seed=seed, epochs=epochs, training=training))
            result = evaluate(model, test, groups=column)
            whole = next(each.errors.model for each in result.columns if each.name == column)
            lines = [("all", result.rows, result.total.model, whole)]
            lines += [(g.name, g.rows, g.error, g.columns[column]) for g in result.groups.groups]
            for group, rows, error, wrong in lines:
                entry = found.setdefault(group, {"test rows": [rows]})
                entry.setdefault(f"error{name}", []).append(error)
                entry.setdefault(f"wrong{name}", []).append(wrong)
    frame = pd.DataFrame({group: {key: np.mean(told) for key, told in entry.items()} for group, entry in found.items()})
    counts = train[column].value_counts().to_dict() | {"all": len(train)}
    frame = frame.T.assign(**{"training rows": [counts.get(group, 0) for group in frame.columns]})
    return frame.sort_values("training rows")


def markdown(column: str, frame: pd.DataFrame) -> str:
    """The rarest groups, and all rows, as a table."""
    chosen = pd.concat([frame[frame.index != "all"].head(SHOWN), frame.loc[["all"]]])
    powers = " | ".join(f"power {power:g}" for power in POWERS)
    lines = [f"| {column} | training rows | test rows | error | {powers} | wrong {column} | {powers} |"]
    lines += ["|---" * (5 + 2 * len(POWERS)) + "|"]
    for group, row in chosen.iterrows():
        names = ["", *(f" {power}" for power in POWERS)]
        errors = " | ".join(f"{row[f'error{name}']:.2f}" for name in names)
        wrong = " | ".join(f"{row[f'wrong{name}']:.1%}" for name in names)
        lines.append(f"| {group} | {row['training rows']:,.0f} | {row['test rows']:,.0f} | {errors} | {wrong} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("columns", nargs="*", default=["race", "native-country"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for column in options.columns:
        print(markdown(column, measured(options.data, column, options.seeds, options.epochs)), "\n")


if __name__ == "__main__":
    main()
