"""``hibiost pretrain --dry-run``: what training would take."""

from __future__ import annotations

import os
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from .._ranks import apart
from ..genes.vocabulary import METADATA, metadata_words
from ._text import columns

if TYPE_CHECKING:
    from ..model import ModelConfig
    from ..train import Engine, Estimate, Recipe
    from .pretrain import Configuration

ASSUMED_SPOTS, ASSUMED_WORDS = 1_500_000, 26 + 2 + 2
"""HEST-1k as the paper trains on it (A.1): spots; organs, species and technologies."""
ASSUMED_GENES = 36_601
"""Genes of 10x Genomics' human reference 2020-A."""
ASSUMED_PEAK, ASSUMED_SHARE = 790e12, 0.5
"""FLOP/s of an H200 in bf16 matrix products, as measured; the share of it that a training step is taken to reach."""
WIDTH = 100
PROBLEMS, GROUPS = 10, 30
"""Lines of problems, and values of a column, that are shown."""


@dataclass(frozen=True)
class _Data:
    """What is known of the data; ``n_measured`` is the number of validation spots."""

    n_spots: int
    n_measured: int
    n_genes: int
    n_words: int


def dry_run(configuration: Configuration, samples_per_second: float | None) -> None:
    """Print what training would take; of several processes the first one does."""
    with apart("cpu") as ranks:
        if ranks.first:
            _tell(configuration, samples_per_second)


def _tell(configuration: Configuration, samples_per_second: float | None) -> None:
    from ..model.encoders import as_encoder
    from ..tl._pretrain import configuration as resolved
    from ..train import Engine, estimate

    encoder, engine = as_encoder(configuration.image_encoder), Engine.of(configuration.engine)
    config, recipe = resolved(encoder or configuration.image_encoder, None, configuration.recipe, configuration.mpp)
    _print("A dry run: nothing is trained, nothing is written.", "")
    data = _data(configuration, skips=engine.unreadable == "skip")
    found = estimate(
        config, recipe, n_spots=data.n_spots, n_genes=data.n_genes, n_words=data.n_words,
        pathways=configuration.pathways is not None, engine=engine,
    )  # fmt: skip
    _print(*_training(found, recipe, data))
    rate, told = _speed(configuration, config, recipe, engine, found, data, samples_per_second)
    print(f"\n{columns(_devices(found, rate))}\n")
    _print(told)


def _print(*lines: str) -> None:
    for line in lines:
        print(textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False), flush=True)


# -- data ------------------------------------------------------------------------------------------------------------


def _data(configuration: Configuration, *, skips: bool) -> _Data:
    places = [configuration.data] if isinstance(configuration.data, str) else configuration.data
    if any(os.path.exists(os.path.expanduser(place)) for place in places):
        return _found(configuration, skips=skips)
    _print(
        f"data: {'nothing at ' + ', '.join(places) if places else 'none given (--set data=FOLDER)'}.",
        f"ASSUMED instead: the {ASSUMED_SPOTS:,} spots of HEST-1k, human and mouse, that the paper trains on (949 "
        f"slides, section A.1), and the {ASSUMED_GENES:,} genes of 10x Genomics' human reference 2020-A.",
    )
    return _Data(ASSUMED_SPOTS, 0, ASSUMED_GENES, ASSUMED_WORDS)


def _found(configuration: Configuration, *, skips: bool) -> _Data:
    corpus = configuration.corpus()
    _print(
        f"data: {len(corpus):,} slides; {_counted(corpus.index, 'species')}; {_counted(corpus.index, 'st_technology')}"
    )
    training, validation = configuration.parts(corpus)
    index = training.index
    used, blocked = index[index["usable"]], "left out" if skips else "where training stops"
    n_spots, measured = int(used["n_spots"].sum()), 0
    _print(f"selected: {len(index):,} slides; {len(used):,} to train on, {len(index) - len(used):,} {blocked}")
    unread = corpus.index.index[corpus.index["n_spots"] == 0].difference(index.index)
    others = corpus.problems[corpus.problems["slide"].isin(unread)]
    _print(*_problems(pd.concat([training.problems, others])))
    if len(used):
        low, middle, high = used["n_spots"].quantile([0, 0.5, 1])
        _print(f"spots: {n_spots:,}; {low:,.0f} to {high:,.0f} a slide, median {middle:,.0f}")
        _print(*(_counted(used, name) for name in ("species", "st_technology", "organ")))
    if validation is not None:
        measured = int(validation.index["n_spots"].sum())
        _print(f"validation: {len(validation):,} slides, {measured:,} spots")
    n_genes = int(used["n_genes"].max()) if len(used) else 0
    _print(f"genes: ASSUMED {n_genes:,}, those of the slide with most; the vocabulary is fitted when training begins")
    words = {word for row in used[list(METADATA)].to_dict("records") for word in metadata_words(_known(row))}
    return _Data(n_spots, measured, n_genes, len(words))


def _known(row: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in row.items() if isinstance(value, str)}


def _counted(index: pd.DataFrame, name: str) -> str:
    """Slides by the values of a column."""
    counts = index[name].astype(object).fillna("unknown").value_counts()
    more = f" and {len(counts) - GROUPS} more" if len(counts) > GROUPS else ""
    return f"{name}: " + ", ".join(f"{value} {n:,}" for value, n in counts.head(GROUPS).items()) + more


def _problems(problems: pd.DataFrame) -> list[str]:
    """A line for each kind, what blocks first."""
    kinds = [
        (not blocking, -len(rows), f"- {_named(rows['slide'])}: {text}" + (" (blocking)" if blocking else ""))
        for (text, blocking), rows in problems.groupby(["problem", "blocking"])
    ]
    lines = [line for *_, line in sorted(kinds)]
    more = [f"- and {len(lines) - PROBLEMS} more kinds of problems; hb.io.Corpus(...).problems lists all"]
    return lines[:PROBLEMS] + (more if len(lines) > PROBLEMS else [])


def _named(slides: pd.Series) -> str:
    return ", ".join(slides.head(3)) + (f" and {len(slides) - 3:,} more" if len(slides) > 3 else "")


# -- training --------------------------------------------------------------------------------------------------------


def _training(found: Estimate, recipe: Recipe, data: _Data) -> list[str]:
    patches = found.patches * (data.n_spots + data.n_measured) / data.n_spots
    parts = ", ".join(f"{name} {n:,}" for name, n in found.parameters.items() if n)
    flops, total = found.devices[0].flops, sum(found.parameters.values())
    return [
        f"steps: {found.steps_per_epoch:,} an epoch, of {found.batch_size:,} spots; {found.n_steps:,} in "
        f"{recipe.epochs} epochs; {found.n_samples:,} samples",
        f"disk: {_gb(patches)} of decoded patches while training lasts; {_gb(found.checkpoint)} a checkpoint",
        f"parameters: {total:,} ({parts}), {'all' if found.n_trained == total else f'{found.n_trained:,}'} trained",
        f"computing: {flops / 1e9:,.1f} GFLOP a sample on one GPU, {found.n_samples * flops / 1e18:,.3g} EFLOP in all; "
        "counted, forward and backward",
        f"memory: {_gb(found.state)} for weights, gradients and AdamW, beside the activations of a step; counted. What "
        "libraries and fragments take comes on top",
    ]


def _speed(
    configuration: Configuration, config: ModelConfig, recipe: Recipe, engine: Engine, found: Estimate, data: _Data,
    samples_per_second: float | None,
) -> tuple[float, str]:  # fmt: skip
    """FLOP/s of one device, and where that comes from."""
    import torch

    beside = "Time is taken to fall with the number of GPUs, and reading the slides is extra."
    alone = found.devices[0].flops
    if samples_per_second is not None:
        return alone * samples_per_second, f"At the {samples_per_second:,.0f} samples/s given for one GPU. {beside}"
    if configuration.device in ("auto", "cuda") and torch.cuda.is_available():
        from ..train.speed import measured_speed

        speed = measured_speed(config, recipe, n_genes=data.n_genes, engine=engine, device="cuda")
        told = f"MEASURED: {speed:,.0f} samples/s on one {torch.cuda.get_device_name()}, random data. {beside}"
        return alone * speed, told
    rate = ASSUMED_PEAK * ASSUMED_SHARE
    return rate, (
        f"ASSUMED, not measured: {rate / 1e12:,.0f} TFLOP/s a GPU, {rate / alone:,.0f} samples/s on one, that is half "
        f"of the {ASSUMED_PEAK / 1e12:,.0f} that an H200 reaches in bf16 matrix products. benchmarks/train.py "
        f"measures yours, for --samples-per-second. {beside}"
    )


def _devices(found: Estimate, rate: float) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("GPUs", "spots each", "at a time", "computed", "memory each", "hours")]
    for each, hours in zip(found.devices, found.hours(rate), strict=True):
        if each.n_devices <= found.batch_size:
            again, memory = "twice" if each.twice else "once", _gb(found.state + each.activations)
            rows.append((f"{each.n_devices}", f"{each.n_spots}", f"{each.at_a_time}", again, memory, f"{hours:,.3g}"))
    return rows


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:,.1f} GB"
