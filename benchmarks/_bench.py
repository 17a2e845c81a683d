"""Ways of doing one thing, timed in turns in one process, beside what the machine can do; as CSV and Markdown.

A script gives a :class:`Table` its ways, case by case, and writes it into ``docs/speed``; ``docs/speed.md`` shows it.
"""

from __future__ import annotations

import csv
import ctypes
import datetime
import gc
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).parents[1] / "docs" / "speed"
PACKAGES = ("hibiost", "numpy", "scipy", "numba", "scikit-learn", "torch", "igraph")
_STATUS = Path("/proc/self/status")


@dataclass
class Way:
    """What one way took."""

    case: str
    name: str
    seconds: list[float]
    peak_mib: float
    limit: float | None = None
    """Seconds that the machine needs at least."""

    @property
    def median(self) -> float:
        """Median seconds."""
        return float(np.median(self.seconds))


@dataclass
class Table:
    """The ways of one hot step.

    Parameters
    ----------
    name
        Name of the files.
    title
        What is measured, a line of Markdown.
    ours
        Name of hibiost's way, of which the others are multiples.
    notes
        What was learned, in Markdown; follows the table.
    rows
        What was measured.
    variants
        Other ways of hibiost, which are no alternatives to it.
    """

    name: str
    title: str
    ours: str
    notes: str = ""
    rows: list[Way] = field(default_factory=list)
    variants: tuple[str, ...] = ()

    def measure(
        self,
        case: str,
        ways: Mapping[str, Callable[[], Any]],
        *,
        rounds: int = 3,
        limit: float | None = None,
        once: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """Time ways in turns and print them; those of ``once`` take part in the first turn only.

        Every other turn goes backwards: the memory that a way leaves behind costs or spares the next one time.

        Parameters
        ----------
        case
            The size of the problem.
        ways
            Functions without arguments, by name; compiled already.
        rounds
            Turns.
        limit
            Seconds below which the machine cannot do it, see :func:`seconds_of`.
        once
            Ways that are too slow for several turns.

        Returns
        -------
        What each way gave, last.
        """
        found: dict[str, Any] = {}
        rows = {name: Way(case, name, [], 0.0, limit) for name in ways}
        for turn in range(rounds):
            for name, way in [*ways.items()][:: -1 if turn % 2 else 1]:
                if turn and name in once:
                    continue
                found.pop(name, None)
                before = reset_peak()
                start = time.perf_counter()
                found[name] = way()
                rows[name].seconds.append(time.perf_counter() - start)
                rows[name].peak_mib = max(rows[name].peak_mib, (resident("VmHWM") - before) / 2**10)
        self.rows += rows.values()
        for row in rows.values():
            print(f"{case:>32} | {row.name:36} {row.median:9.3f} s {row.peak_mib:9,.0f} MiB  x {self._ratio(row):.2f}")
        others = [row for name, row in rows.items() if name not in (self.ours, *self.variants)]
        if others:
            best = min(others, key=lambda row: row.median)
            told = f"{best.name}, the best of the others, takes {self._ratio(best):.2f} times as long as {self.ours}"
            print(told + (f", which takes {rows[self.ours].median / limit:.1f} times the limit." if limit else "."))
        return {name: found[name] for name in ways}

    def write(self) -> None:
        """Write ``docs/speed/NAME.csv`` and ``NAME.md``."""
        header = ["case", "way", "median_s", "min_s", "max_s", "runs", "peak_mib", "of_ours", "limit_s"]
        lines = []
        for row in self.rows:
            limit = "" if row.limit is None else f"{row.limit:.4g}"
            seconds = [f"{n:.4g}" for n in (row.median, min(row.seconds), max(row.seconds))]
            told = [len(row.seconds), f"{row.peak_mib:.0f}", f"{self._ratio(row):.3f}", limit]
            lines.append([row.case, row.name, *seconds, *told])
        write(self.name, header, lines, f"{self.title}\n\n{self._markdown()}\n\n{self.notes.strip()}")

    def _ratio(self, row: Way) -> float:
        (own,) = (other for other in self.rows if other.case == row.case and other.name == self.ours)
        return row.median / own.median

    def _markdown(self) -> str:
        limits = any(row.limit is not None for row in self.rows)
        lines = [["", "way", "seconds", "peak memory (MiB)", f"of {self.ours}", *(["of the limit"] if limits else [])]]
        case = None
        for row in self.rows:
            cells = [row.case if row.case != case else "", row.name, f"{row.median:.3g}", f"{row.peak_mib:,.0f}"]
            cells.append(f"{self._ratio(row):.2f}")
            if limits:
                cells.append("" if row.limit is None else f"{row.median / row.limit:.1f}")
            lines.append(cells)
            case = row.case
        return markdown(lines)


def markdown(lines: Sequence[Sequence[object]]) -> str:
    """A table of which the first line is the head."""
    head, *rest = lines
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (head, ["---"] * len(head), *rest))


def write(name: str, header: Sequence[str], lines: Sequence[Sequence[object]], text: str) -> None:
    """Write lines as ``docs/speed/NAME.csv`` and a text as ``NAME.md``, both with the machine and versions."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    where = machine()
    with (FOLDER / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*header, *where])
        writer.writerows([*line, *where.values()] for line in lines)
    path = FOLDER / f"{name}.md"
    path.write_text(f"{text.strip()}\n\n{where['date']}, {where['machine']}; {where['versions']}.\n", encoding="utf-8")
    print(f"written: {path} and {path.with_suffix('.csv').name}")


@cache
def copy_speed() -> float:
    """Bytes read and written a second by a copy of 256 MiB, best of 7."""
    source = torch.zeros(1 << 26)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(_timed(lambda: target.copy_(source)) for _ in range(7))


@cache
def matmul_speed(dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second of a product of two 2,048 x 2,048 matrices, best of 7."""
    a, b = torch.randn(2, 2_048, 2_048).to(dtype)
    return 2 * 2_048**3 / min(_timed(lambda: a @ b) for _ in range(7))


def seconds_of(*, bytes_moved: float = 0, flops: float = 0, dtype: torch.dtype = torch.float32) -> float:
    """Seconds that the machine needs to move bytes and to multiply, one after the other."""
    return (bytes_moved / copy_speed() if bytes_moved else 0) + (flops / matmul_speed(dtype) if flops else 0)


@cache
def machine() -> dict[str, str]:
    """Date, machine and versions."""
    model = re.search(r"model name\s+: (.+)", Path("/proc/cpuinfo").read_text())
    told = f"{os.cpu_count()} cores of {model[1] if model else platform.processor()}, {torch.get_num_threads()} threads"
    told += f", copies {copy_speed() / 1e9:.0f} GB/s, multiplies {matmul_speed() / 1e9:.0f} GFLOP/s in float32"
    told += f" and {matmul_speed(torch.bfloat16) / 1e9:.0f} in bfloat16"
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return {
        "date": datetime.date.today().isoformat(),
        "machine": told,
        "versions": f"Python {platform.python_version()}, {versions}",
    }


def _timed(way: Callable[[], object]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def reset_peak() -> int:
    """Give free memory back and forget the peak; KiB that are resident now (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(name: str) -> int:
    """A field of the process status, KiB."""
    found = re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text())
    assert found
    return int(found[1])
