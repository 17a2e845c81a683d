"""Retrieval from a large reference: time and memory, beside a plain matrix product and torch.topk.

``python benchmarks/retrieval.py [--bank 1000000] [--dim 256] [--queries 4000] [--genes 300]``. The embeddings are
random, and the reference holds 10 % of the entries of its genes. Each way runs in a process of its own; the plain one
compares as many queries at a time as ``--plain`` allows, with the whole bank, and checks that it finds the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

from hibiost.model import confidence, retrieval

TOP_K, DENSITY = 100, 0.1


def resident() -> int:
    """Bytes of this process that are in memory now."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith("VmRSS")).split()[1])


class Peak:
    """Growth of memory and time within a ``with`` block; memory is looked at every 10 ms."""

    def __enter__(self) -> Peak:
        self.before, self.most, self.over = resident(), 0, threading.Event()
        self.watcher = threading.Thread(target=self.watch)
        self.watcher.start()
        self.start, self.started = time.perf_counter(), time.process_time()
        return self

    def watch(self) -> None:
        """Until the block is left."""
        while not self.over.wait(0.01):
            self.most = max(self.most, resident())

    def __exit__(self, *error: object) -> None:
        self.seconds, self.cpu = time.perf_counter() - self.start, time.process_time() - self.started
        self.over.set()
        self.watcher.join()
        self.megabytes = max(0, self.most - self.before) / 1e6

    def row(self) -> tuple[float, float, float]:
        """Seconds, seconds of CPU, MB."""
        return self.seconds, self.cpu, self.megabytes


def unit(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    """Random directions, float32."""
    out = rng.standard_normal((n, dim), dtype=np.float32)
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    return out


def counts(rng: np.random.Generator, n: int, genes: int) -> sparse.csr_matrix:
    """Expression with the same number of entries in each row."""
    kept = max(1, int(genes * DENSITY))
    columns = (rng.integers(genes, size=(n, 1), dtype=np.int32) + np.arange(kept, dtype=np.int32)) % genes
    values = np.log1p(rng.poisson(3, size=n * kept).astype(np.float32))
    return sparse.csr_matrix((values, columns.ravel(), np.arange(0, n * kept + 1, kept)), shape=(n, genes))


def plain(queries: np.ndarray, bank: np.ndarray, at_a_time: int) -> np.ndarray:
    """Rows of the bank, by one product with all of it."""
    whole = torch.from_numpy(bank).T
    parts = [torch.from_numpy(queries[i : i + at_a_time]) for i in range(0, len(queries), at_a_time)]
    return torch.cat([torch.topk(part @ whole, TOP_K).indices for part in parts]).numpy()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One way, in this process."""
    rng = np.random.default_rng(0)
    bank, queries = (unit(rng, n, options.dim) for n in (options.bank, options.queries))
    queries[:10] @ bank[:10].T
    if options.way == "plain":
        with Peak() as found:
            rows = plain(queries, bank, options.plain)
        return {"search": found.row(), "check": int(rows.sum())}
    with Peak() as found:
        rows, similarities = retrieval.most_similar(queries, bank, TOP_K)
    result: dict[str, Any] = {"search": found.row(), "check": int(rows.sum())}
    values = counts(rng, options.bank, options.genes)
    mixing = retrieval.neighbour_weights(similarities).ravel()
    ends = np.arange(0, rows.size + 1, TOP_K)
    weights = sparse.csr_matrix((mixing, rows.ravel(), ends), shape=(len(queries), len(bank)))
    with Peak() as found:
        predicted = retrieval.mixed(weights, values)
    result["mean"] = found.row()
    with Peak() as found:
        confidence.correlation_ratio(weights, values, predicted)
    result["confidence"] = found.row()
    return result


def parsed() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"bank": 1_000_000, "dim": 256, "queries": 4_000, "genes": 300, "plain": 250}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--way", choices=["plain", "hibiost"], help="run one way, in this process")
    return parser.parse_args()


if __name__ == "__main__":
    options = parsed()
    if options.way:
        print(json.dumps(measure(options)))
        sys.exit()
    found = {}
    for way in ("plain", "hibiost"):
        command = [sys.executable, __file__, "--way", way, *sys.argv[1:]]
        found[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert found["plain"]["check"] == found["hibiost"]["check"], "the two find other rows"
    print(f"{options.queries:,} queries, {options.bank:,} x {options.dim}, {torch.get_num_threads()} threads\n")
    print("| step | seconds | CPU seconds | memory (MB) |\n|---|---|---|---|")
    for way, steps in found.items():
        for step, values in steps.items():
            if step != "check":
                print(f"| {way}, {step} | {values[0]:.1f} | {values[1]:.1f} | {values[2]:,.0f} |")
