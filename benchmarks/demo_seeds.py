"""The demo over several seeds: mean and spread of every score, as Markdown.

``python benchmarks/demo_seeds.py OUT [SEED ...]`` runs ``hibiost demo`` into ``OUT/<seed>`` for each seed (by
default 0, 1 and 2) that has no scores there yet, one after the other.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd

KEYS = ["task", "target", "method", "metric"]


def scores(out: Path, seed: int) -> pd.DataFrame:
    """Scores of one seed, computed where they are not there."""
    folder = out / str(seed)
    if not (folder / "scores.csv").is_file():
        command = [sys.executable, "-m", "hibiost", "demo", "--seed", str(seed), "--out", str(folder)]
        subprocess.run(command, check=True)
    return pd.read_csv(folder / "scores.csv", keep_default_na=False)


def table(every: pd.DataFrame, task: str) -> str:
    """Mean and standard deviation over seeds of one task."""
    part = every[every["task"] == task]
    metrics = list(dict.fromkeys(part["metric"]))
    lines = [f"| target | method | {' | '.join(metrics)} |", f"|{'---|' * (len(metrics) + 2)}"]
    for (target, method), rows in part.groupby(["target", "method"], sort=False):
        cells = []
        for metric in metrics:
            values = rows.loc[rows["metric"] == metric, "value"].astype(float)
            digits = 1 if task == "retrieval" else 3
            cells.append(f"{values.mean():.{digits}f} ± {values.std():.{digits}f}")
        lines.append(f"| {target} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    out, seeds = Path(sys.argv[1]), [int(seed) for seed in sys.argv[2:]] or [0, 1, 2]
    every = pd.concat([scores(out, seed) for seed in seeds])
    print(f"Seeds {', '.join(map(str, seeds))}; mean ± standard deviation.")
    for task in dict.fromkeys(every["task"]):
        print(f"\n{task}\n\n{table(every, task)}")
