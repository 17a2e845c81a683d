"""Speed of a training step beside the plain float32 loop, and where its time goes.

``python benchmarks/train.py [--preset ViT-B-16] [--device cuda] [--batch-size 512] [--micro-batch 128] [--compile]``
trains with :func:`hibiost.train.fit` (all three losses, patches read from a memory map) on synthetic spots, and in turn
with the plain loop: open_clip's towers as they come, InfoNCE, AdamW, float32 without autocast, whole context. A large
matrix product is timed beside each. Medians go to ``benchmarks/results/train_<device>.csv`` and ``.md``.
"""

from __future__ import annotations

import argparse
import ctypes
import platform
import re
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import open_clip
import pandas as pd
import timm
import torch
import torch.nn.functional as F
from scipy import sparse
from torch.utils.flop_counter import FlopCounterMode

import hibiost as hb
from hibiost.model.tokens import END, PAD, trimmed
from hibiost.train import Engine, Pairs, PatchStore, PathwayAnchors, Recipe, Regions, fit, task
from hibiost.train.cpu import keep_memory
from hibiost.train.data import centre
from hibiost.train.fit import lightning_precision
from hibiost.train.store import stored_side

N_GENES, N_PATHWAYS, N_SLIDES, REGIONS_PER_SLIDE = 18_000, 1_000, 4, 8
PARTS = ("data", "augmentation", "image tower", "gene tower", "losses", "optimiser", "rest")
PAPER_SAMPLES = 75e6
"""1.5 million spots in 50 epochs."""
RESET_PEAK = Path("/proc/self/clear_refs")
SETTINGS = {
    "cpu": {"batch_size": 32, "plain_batch_size": 32, "warm": 1, "steps": 6, "turn": 3, "matmul": 4_096},
    "cuda": {"batch_size": 512, "plain_batch_size": 128, "warm": 5, "steps": 30, "turn": 10, "matmul": 8_192},
}
"""By device; ``turn`` is the number of steps before it is the plain loop's turn."""


class Stopwatch:
    """What the device was busy with: marks in its stream, each with the name of what begins."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device == "cuda"
        self._marks: list[tuple[str, Any]] = []
        self._now = "rest"

    def begin(self, name: str) -> None:
        """From here on it is busy with this."""
        mark: Any = time.perf_counter() if not self._on_gpu else torch.cuda.Event(enable_timing=True)
        if self._on_gpu:
            mark.record()
        self._marks.append((name, mark))
        self._now = name

    def around(self, name: str, function: Callable[..., Any], *, backward: bool = False) -> Callable[..., Any]:
        """The function, measured; with ``backward`` what follows its gradient in the backward pass is too."""

        def measured(*args: Any) -> Any:
            before = self._now
            self.begin(name)
            try:
                found = function(*args)
            finally:
                self.begin(before)
            if backward and found.requires_grad:
                found.register_hook(lambda _: self.begin(name))
            return found

        return measured

    def seconds(self) -> Counter[str]:
        """Seconds of each name since the last call."""
        if self._on_gpu:
            torch.cuda.synchronize()
        spent: Counter[str] = Counter()
        for (name, start), (_, stop) in zip(self._marks[:-1], self._marks[1:], strict=True):
            spent[name] += start.elapsed_time(stop) / 1e3 if self._on_gpu else stop - start
        self._marks.clear()
        return spent


class Memory:
    """Peak memory of a step above what was there before it, bytes; of the GPU, or of the process (on Linux)."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device == "cuda"
        self._before = 0

    def begin(self, *, trim: bool = True) -> None:
        """The peak begins anew; without ``trim``, what the process keeps from step to step is not part of before."""
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        elif RESET_PEAK.exists():
            if trim:
                ctypes.CDLL(None).malloc_trim(0)
                self._before = _status("VmRSS")
            RESET_PEAK.write_text("5")

    def extra(self) -> float:
        """Bytes."""
        if self._on_gpu:
            return torch.cuda.max_memory_allocated() - self._before
        return _status("VmHWM") - self._before if RESET_PEAK.exists() else np.nan


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


class Plain:
    """The loop one would write first: open_clip's towers, float32, AdamW."""

    def __init__(self, config: hb.model.ModelConfig, vocab_size: int, pairs: Pairs, batch_size: int, device: str):
        text = open_clip.CLIPTextCfg(**config.text_cfg, vocab_size=vocab_size, pad_id=PAD, eos_id=END, pool_type="eos")
        vision = open_clip.CLIPVisionCfg(**config.vision_cfg)
        self._model = open_clip.CustomTextCLIP(config.embed_dim, vision, text).to(device).train()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-5)
        self._config, self._pairs, self._device, self._batch_size = config, pairs, device, batch_size
        self._mean, self._std = (torch.tensor(values).view(1, 3, 1, 1) for values in (config.mean, config.std))
        self._place = 0

    def step(self) -> None:
        """The next batch."""
        spots = np.arange(self._place, self._place + self._batch_size) % len(self._pairs)
        self._place += self._batch_size
        patches = torch.from_numpy(centre(self._pairs.patches_of(spots), self._config.image_size))
        pixels = (patches.permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std
        tokens = torch.from_numpy(self._pairs.tokens[spots])
        image, gene, scale = self._model(pixels.contiguous().to(self._device), tokens.to(self._device))
        logits = scale * image @ gene.T
        target = torch.arange(len(logits), device=self._device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        loss.item()


class Measure(lightning.Callback):
    """Times the steps of :func:`fit`, and every few of them as many of the plain loop, and matrix products."""

    def __init__(self, plain: Plain | None, options: argparse.Namespace) -> None:
        self._plain, self._options = plain, options
        self._watch = Stopwatch(options.device)
        self._memory, self._plain_memory = Memory(options.device), Memory(options.device)
        self.steps: list[Counter[str]] = []
        self.seconds: dict[str, list[float]] = defaultdict(list)
        """Wall time by name: a step of ours, of the plain loop, a matrix product."""
        self.extra: dict[str, list[float]] = defaultdict(list)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Have regions from the first step on, and measure what is called."""
        within_slide = np.arange(len(pl_module.pairs)) // N_SLIDES % REGIONS_PER_SLIDE
        pl_module.regions.ids[:] = pl_module.regions.slide * REGIONS_PER_SLIDE + within_slide
        pl_module.renewals.append({"epoch": 0})
        model, watch = pl_module.model, self._watch
        task.augment = watch.around("augmentation", task.augment)
        model.encode_image = watch.around("image tower", model.encode_image, backward=True)
        model.encode_genes = watch.around("gene tower", model.encode_genes, backward=True)
        losses = pl_module._terms

        def terms(*args: Any) -> Any:
            watch.begin("losses")  # and their backward pass, until it reaches the towers
            return losses(*args)

        pl_module._terms = terms
        self._begin(trim=True)

    def _begin(self, *, trim: bool) -> None:
        self._watch.seconds()
        self._memory.begin(trim=trim)
        self._start = time.perf_counter()
        self._watch.begin("data")

    def on_train_batch_start(self, *args: Any) -> None:
        """The batch is on the device."""
        self._watch.begin("rest")

    def on_before_optimizer_step(self, *args: Any) -> None:
        """The gradients are there."""
        self._watch.begin("optimiser")

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """The step is over; perhaps it is the others' turn."""
        self._watch.begin("end")
        spent = self._watch.seconds()  # waits for the device
        seconds, number, options = time.perf_counter() - self._start, trainer.global_step, self._options
        counted = number > options.warm
        if counted:
            self.steps.append(spent)
            self.seconds["ours"].append(seconds)
            self.extra["ours"].append(self._memory.extra())
        print(f"step {number}: {seconds:.3f} s" + ("" if counted else " (warm-up)"), flush=True)
        if number == options.warm or (counted and (number - options.warm) % options.turn == 0):
            keep_memory(False)  # noqa: FBT003 - for the plain loop, as it would be without us
            self._others(counted=counted)
            keep_memory(options.device == "cpu")
        self._begin(trim=not counted)

    def _others(self, *, counted: bool) -> None:
        for _ in range(self._options.turn if self._plain else 0):
            self._plain_memory.begin()
            start = time.perf_counter()
            self._plain.step()
            if counted:
                self.seconds["plain"].append(time.perf_counter() - start)
                self.extra["plain"].append(self._plain_memory.extra())
        for dtype in (torch.float32, torch.bfloat16):
            taken = matmul_seconds(self._options.matmul, dtype, self._options.device)
            if counted:
                self.seconds[str(dtype).removeprefix("torch.")].append(taken)


def matmul_seconds(n: int, dtype: torch.dtype, device: str) -> float:
    """The quickest of a few products of random n x n matrices."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    taken = []
    for _ in range(3 if device == "cpu" else 20):
        start = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken)


@contextmanager
def synthetic(
    model: hb.model.HibioModel, recipe: Recipe, n_spots: int
) -> Iterator[tuple[Pairs, PathwayAnchors, Regions]]:
    """Spots with patches on disk, sentences, pathways, slides and regions, all random."""
    rng = np.random.default_rng(0)
    config = model.config
    side = stored_side(config.image_size, recipe.shift)
    tokens = model.tokenizer(rng.integers(0, N_GENES, (n_spots, recipe.n_genes)))
    overlap = sparse.random_array((n_spots, N_PATHWAYS), density=0.02, format="csr", dtype=np.float32, rng=rng)
    members = sparse.random_array((N_PATHWAYS, N_GENES), density=60 / N_GENES, format="csr", rng=rng)
    anchors = PathwayAnchors(
        sparse.csr_matrix(overlap), sparse.csr_matrix(members), embed_dim=config.embed_dim,
        width=config.text_cfg["width"], n_negatives=recipe.n_negatives,
    )  # fmt: skip
    regions = Regions(np.arange(n_spots) % N_SLIDES, rng.random((n_spots, 2)), n_neighbors=15, seed=0)
    with tempfile.TemporaryDirectory(prefix="hibiost-") as folder:
        store = PatchStore(Path(folder) / "patches.uint8", n_spots, side)
        store.create()
        store.write(0, (rng.integers(0, 256, (1, side, side, 3), dtype=np.uint8) for _ in range(n_spots)))
        yield Pairs(store.read(), tokens), anchors, regions


def flops_per_sample(model: hb.model.HibioModel, pairs: Pairs) -> dict[str, float]:
    """Of forward and backward pass of each tower, by PyTorch's counter; attention counts whole, causal or not."""
    spots = np.arange(2)
    patches = torch.from_numpy(centre(pairs.patches_of(spots), model.config.image_size)).to(model.device)
    tokens = torch.from_numpy(trimmed(pairs.tokens[spots])).to(model.device)
    found = {}
    for name, features in (
        ("image tower", lambda: model.encode_image(patches.permute(0, 3, 1, 2))),
        ("gene tower", lambda: model.encode_genes(tokens)),
    ):
        with FlopCounterMode(display=False) as counter:
            features().sum().backward()
        found[name] = counter.get_total_flops() / len(spots)
    model.zero_grad()
    return found


def measure(options: argparse.Namespace) -> tuple[pd.DataFrame, dict[str, str]]:
    """All figures as rows of part, quantity, value and unit, and what they were measured with."""
    config = hb.model.ModelConfig.preset(options.preset)
    n_spots = options.batch_size * (options.warm + options.steps)
    recipe = Recipe().updated({**config.recipe, "batch_size": options.batch_size, "epochs": 1})
    names = tuple(f"GENE{number}" for number in range(N_GENES))
    vocabulary = hb.genes.Vocabulary(names, np.ones(N_GENES, int), np.full(N_GENES, n_spots))
    model = hb.model.HibioModel(config, vocabulary).to(options.device).train()
    engine = Engine(micro_batch=options.micro_batch, compile=options.compile)
    with synthetic(model, recipe, n_spots) as (pairs, anchors, regions):
        flops = flops_per_sample(model, pairs)
        plain = None
        if not options.no_plain:
            plain = Plain(config, model.tokenizer.vocab_size, pairs, options.plain_batch_size, options.device)
        clock = Measure(plain, options)
        fit(
            model, pairs, recipe=recipe, seed=0, pathways=anchors, regions=regions, engine=engine,
            accelerator=options.device, progress=False, callbacks=[clock],
        )  # fmt: skip
    weights = sum(each.numel() for each in (*model.parameters(), *anchors.parameters()))
    precision = lightning_precision(recipe.precision, options.device)
    return table(clock, flops, 4 * 4 * weights, options, precision), about(options, precision)


def table(
    clock: Measure, flops: dict[str, float], state: float, options: argparse.Namespace, precision: str
) -> pd.DataFrame:
    """The medians, and what follows from them."""
    seconds = {name: statistics.median(values) for name, values in clock.seconds.items()}
    peak = {name: 2 * options.matmul**3 / seconds[name] for name in ("float32", "bfloat16")}
    total, rows = sum(flops.values()), []
    limit = peak["bfloat16" if precision.startswith("bf16") else "float32"]
    for part, batch_size, own_peak in (
        ("ours", options.batch_size, limit),
        ("plain", options.plain_batch_size, peak["float32"]),
    ):
        if part not in seconds:
            continue
        speed = batch_size / seconds[part]
        rows += [
            (part, "batch", batch_size, "spots"),
            (part, "step", seconds[part], "s"),
            (part, "speed", speed, "samples/s"),
            (part, "computing", speed * total / 1e9, "GFLOP/s"),
            (part, "of the matmul peak", 100 * speed * total / own_peak, "%"),
            (part, "weights, gradients, AdamW", state / 2**30, "GiB"),
            (part, "step above that", statistics.median(clock.extra[part]) / 2**30, "GiB"),
        ]
    if "plain" in seconds:
        ratio = options.batch_size / seconds["ours"] / (options.plain_batch_size / seconds["plain"])
        rows.append(("ours", "times the plain loop", ratio, ""))
    rows.append(("ours", "75 million samples", PAPER_SAMPLES * seconds["ours"] / options.batch_size / 3600, "h"))
    for part in PARTS:
        taken = statistics.median(step[part] for step in clock.steps)
        whole = statistics.median(sum(step.values()) for step in clock.steps)
        rows += [(part, "time", taken, "s"), (part, "share of the step", 100 * taken / whole, "%")]
        if part in flops:
            rate = options.batch_size * flops[part] / taken
            rows += [(part, "computing", rate / 1e9, "GFLOP/s"), (part, "of the matmul peak", 100 * rate / limit, "%")]
    rows += [(part, "per sample", value / 1e9, "GFLOP") for part, value in {**flops, "both towers": total}.items()]
    rows += [
        (f"matmul of {options.matmul}^3 in {name}", "computing", rate / 1e9, "GFLOP/s") for name, rate in peak.items()
    ]
    return pd.DataFrame(rows, columns=["part", "quantity", "value", "unit"])


def about(options: argparse.Namespace, precision: str) -> dict[str, str]:
    """Device, versions and date."""
    packages = {"torch": torch, "lightning": lightning, "open_clip": open_clip, "timm": timm}
    return {
        "device": device_name(options.device),
        "date": f"{date.today():%Y-%m-%d}",
        "versions": ", ".join(
            [f"Python {platform.python_version()}", *(f"{name} {each.__version__}" for name, each in packages.items())]
        ),
        "precision": precision,
        "command": " ".join(["python benchmarks/train.py", *sys.argv[1:]]),
    }


def device_name(device: str) -> str:
    """The GPU, or processor and threads."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.processor()])[0]}, {torch.get_num_threads()} threads"


def markdown(found: pd.DataFrame, known: dict[str, str], options: argparse.Namespace) -> str:
    """The figures as two tables."""
    value = {(row.part, row.quantity): rounded(row.value) for row in found.itertuples()}
    unit = {row.quantity: row.unit for row in found.itertuples()}

    def lines(first: str, columns: list[str], names: dict[str, str]) -> list[str]:
        """A row for each name."""
        heads = [f"{column}, {unit[column]}" for column in columns]
        body = [[name, *(value.get((part, column), "") for column in columns)] for part, name in names.items()]
        return [f"| {' | '.join(row)} |" for row in ([first, *heads], ["---"] * (len(columns) + 1), *body)]

    compiled = ", compiled" if options.compile else ""
    at_a_time = f", {options.micro_batch} spots at a time" if options.micro_batch else ""
    ways = {"ours": f"`hibiost.train.fit`, {known['precision']}{compiled}{at_a_time}"}
    turns = ""
    if ("plain", "speed") in value:
        ways["plain"] = "plain float32 loop"
        turns = f", in turn with the plain loop: **{value['ours', 'times the plain loop']} times its samples/s**"
    shown = [
        "batch",
        "step",
        "speed",
        "computing",
        "of the matmul peak",
        "weights, gradients, AdamW",
        "step above that",
    ]
    tower = {name: value[name, "per sample"] for name in ("both towers", "image tower", "gene tower")}
    matmuls = [f"{rounded(row.value)} ({row.part})" for row in found.itertuples() if row.part.startswith("matmul")]
    return "\n".join(
        [
            f"# A training step of {options.preset}: {known['device']}",
            "",
            f"`{known['command']}`, {known['date']}, {known['versions']}. Medians of {options.steps} steps after "
            f"{options.warm} of warm-up{turns}.",
            "",
            *lines("", shown, ways),
            "",
            f"{tower['both towers']} GFLOP a sample (image tower {tower['image tower']}, gene tower "
            f"{tower['gene tower']}; forward and backward, causal attention counted whole). "
            "Peak of the matrix product beside it, GFLOP/s: "
            f"{', '.join(matmuls)}. The paper's 75 million samples would take {value['ours', '75 million samples']} h.",
            "",
            *lines(
                "part of the step",
                ["time", "share of the step", "computing", "of the matmul peak"],
                {part: part for part in PARTS},
            ),
            "",
        ]
    )


def rounded(value: float) -> str:
    """Three digits, or whole."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def arguments() -> argparse.Namespace:
    """What was asked for, and for the rest what suits the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=list(SETTINGS), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", default="ViT-B-16", choices=hb.model.presets())
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--plain-batch-size", type=int, help="of the plain loop, which needs more memory")
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--steps", type=int, help="counted, after a warm-up")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--no-plain", action="store_true", help="leave the plain loop out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU here: PyTorch finds no CUDA device; leave --device out, or run this on a machine with one.")
    for name, value in SETTINGS[options.device].items():
        if getattr(options, name, None) is None:
            setattr(options, name, value)
    return options


def main() -> None:
    """Measure, print and write."""
    options = arguments()
    hb.settings.verbosity = "error"
    found, known = measure(options)
    text = markdown(found, known, options)
    print(f"\n{text}")
    name = "cpu" if options.device == "cpu" else re.sub(r"\W+", "_", torch.cuda.get_device_name().lower())
    options.out.mkdir(parents=True, exist_ok=True)
    found.assign(**known).to_csv(options.out / f"train_{name}.csv", index=False)
    (options.out / f"train_{name}.md").write_text(text)


if __name__ == "__main__":
    main()
