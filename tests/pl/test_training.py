from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from hibiost import pl
from hibiost.errors import DataError, RunError

STEPS_PER_EPOCH, EPOCHS = 4, 6


def step(number: int) -> dict[str, Any]:
    """The spot loss falls, the pathway loss too, regions come after epoch 2."""
    epoch = number / STEPS_PER_EPOCH
    region = {"region": 1.4 / epoch, "region_chance": math.log(4 + number % 2)} if epoch > 2 else {}
    return {
        "event": "step", "step": number, "epoch": epoch, "loss": 4 / (1 + epoch), "spot": 3.6 / (1 + epoch),
        "pathway": 0.01 / epoch, "with_pathway": 1.0, **region, "lr": 1e-4 / number, "spots_per_second": 90.0 + number,
    }  # fmt: skip


def epoch(number: int) -> dict[str, Any]:
    steps = [step(n + 1) for n in range((number - 1) * STEPS_PER_EPOCH, number * STEPS_PER_EPOCH)]
    names = [
        name for name in ("loss", "spot", "pathway", "with_pathway", "region", "region_chance") if name in steps[0]
    ]
    return {"epoch": number, **{name: float(np.mean([each[name] for each in steps])) for name in names}, "scale": 14.0}


def recall(number: int) -> dict[str, float]:
    return {"recall_1": 1.0 + number, "recall_5": 5.0 + 2 * number, "recall_10": 10.0 + 3 * number}


def write_run(folder: Path, n_steps: int, *, validation: bool = True) -> Path:
    """A run that was looked at after so many steps, while the next line is written."""
    lines = []
    for number in range(1, n_steps + 1):
        lines.append(step(number))
        done, rest = divmod(number, STEPS_PER_EPOCH)
        if not rest:
            lines.append({"event": "epoch", "step": number, **epoch(done), **(recall(done) if validation else {})})
            if done in (2, 4):
                lines.append({"event": "regions", "step": number, "epoch": done, "n_regions": 9, "coherence": 0.7})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "st')
    described = {"configuration": {"recipe": {"batch_size": 32}}, "data": {"0/a": {"n_spots": 128}}}
    (folder / "run.json").write_text(json.dumps(described))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path, STEPS_PER_EPOCH * EPOCHS)


def titles(figure: Any) -> list[str]:
    return [ax.get_title() for ax in figure.axes]


def dashed(ax: Any) -> list[Any]:
    return [line for line in ax.lines if line.get_linestyle() == "--"]


def test_a_panel_for_everything_that_was_measured(run: Path) -> None:
    figure = pl.training(run)
    assert isinstance(figure, Figure)
    assert not plt.get_fignums()
    assert titles(figure) == [
        "spot loss", "pathway loss", "region loss", "validation Recall@p% (%)", "learning rate", "spots per second",
    ]  # fmt: skip
    for ax in figure.axes:
        assert ax.get_xlabel() == "epoch"
        assert ax.get_xlim() == (0, EPOCHS)


@pytest.mark.parametrize(("place", "term", "first"), [(0, "spot", 1), (1, "pathway", 1), (2, "region", 3)])
def test_steps_are_thin_and_epochs_thick(run: Path, place: int, term: str, first: int) -> None:
    thin, thick = pl.training(run).axes[place].lines[:2]
    numbers = range((first - 1) * STEPS_PER_EPOCH + 1, STEPS_PER_EPOCH * EPOCHS + 1)
    np.testing.assert_allclose(thin.get_xydata(), [(n / STEPS_PER_EPOCH, step(n)[term]) for n in numbers])
    np.testing.assert_allclose(thick.get_xydata(), [(n, epoch(n)[term]) for n in range(first, EPOCHS + 1)])
    assert thick.get_linewidth() > 2 * thin.get_linewidth()
    assert thick.get_color() == thin.get_color()


def test_chance_is_dashed(run: Path) -> None:
    spot, pathway, region, validation = pl.training(run).axes[:4]
    (level,) = dashed(spot)
    np.testing.assert_allclose(level.get_ydata(), [math.log(32)] * 2)
    assert not dashed(pathway)
    (level,) = dashed(region)
    assert list(level.get_xdata()) == [0, 1]  # all along, as each epoch has the same mean
    np.testing.assert_allclose(level.get_ydata(), [(math.log(4) + math.log(5)) / 2] * 2)
    assert sorted(line.get_ydata()[0] for line in dashed(validation)) == [1, 5, 10]


def test_region_chance_is_drawn_by_epochs_where_it_changes(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()[:-1]]
    for line in lines:
        if line["event"] == "epoch" and "region" in line:
            line["region_chance"] = math.log(line["epoch"])
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (level,) = dashed(pl.training(run).axes[2])
    np.testing.assert_allclose(level.get_xydata(), [(n, math.log(n)) for n in range(3, EPOCHS + 1)])


def test_renewals_of_regions_are_dotted(run: Path) -> None:
    dotted = [[line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"] for ax in pl.training(run).axes]
    assert dotted == [[], [], [2, 4], [], [], []]


def test_recall_learning_rate_and_speed(run: Path) -> None:
    validation, rate, speed = pl.training(run).axes[3:]
    drawn = {line.get_label(): line.get_ydata().tolist() for line in validation.lines if line.get_linestyle() == "-"}
    numbers = range(1, EPOCHS + 1)
    assert drawn == {f"@{p} %": [recall(n)[f"recall_{p}"] for n in numbers] for p in (10, 5, 1)}
    steps = range(1, STEPS_PER_EPOCH * EPOCHS + 1)
    np.testing.assert_allclose(rate.lines[0].get_ydata(), [1e-4 / n for n in steps])
    np.testing.assert_allclose(speed.lines[0].get_ydata(), [90 + n for n in steps])
    for ax, top in ((validation, 28), (rate, 1e-4), (speed, 114)):
        assert ax.get_ylim()[0] == 0
        assert ax.get_ylim()[1] > top


@pytest.mark.parametrize(
    ("n_steps", "panels"),
    [
        (1, ["spot loss", "pathway loss", "learning rate", "spots per second"]),
        (5, ["spot loss", "pathway loss", "validation Recall@p% (%)", "learning rate", "spots per second"]),
        (
            9,
            [
                "spot loss",
                "pathway loss",
                "region loss",
                "validation Recall@p% (%)",
                "learning rate",
                "spots per second",
            ],
        ),
    ],
)
def test_a_run_in_progress(tmp_path: Path, n_steps: int, panels: list[str]) -> None:
    figure = pl.training(write_run(tmp_path, n_steps))
    assert titles(figure) == panels
    spot = figure.axes[0]
    assert len(spot.lines[0].get_xdata()) == n_steps
    assert len(spot.lines[1].get_xdata()) == n_steps // STEPS_PER_EPOCH
    assert spot.lines[1].get_marker() == ("o" if n_steps == 5 else "")  # one epoch alone is no line
    np.testing.assert_allclose(dashed(spot)[0].get_ydata(), math.log(32))
    if "region loss" in panels:
        np.testing.assert_allclose(dashed(figure.axes[2])[0].get_ydata(), math.log(5))


def test_without_validation(tmp_path: Path) -> None:
    assert titles(pl.training(write_run(tmp_path, 4, validation=False))) == [
        "spot loss", "pathway loss", "learning rate", "spots per second",
    ]  # fmt: skip


def test_a_model_remembers_epochs() -> None:
    info = {"history": [epoch(n) for n in range(1, EPOCHS + 1)], "regions": [{"epoch": 2}], "recipe": {"batch_size": 8}}
    figure = pl.training(SimpleNamespace(training_info=info))
    assert titles(figure) == ["spot loss", "pathway loss", "region loss"]
    thin, thick, chance = figure.axes[0].lines
    assert len(thin.get_xdata()) == 0
    np.testing.assert_allclose(thick.get_xydata(), [(n, epoch(n)["spot"]) for n in range(1, EPOCHS + 1)])
    np.testing.assert_allclose(chance.get_ydata(), math.log(8))
    assert figure.axes[0].get_legend() is None


def test_axes_of_the_user_and_a_file(run: Path, tmp_path: Path) -> None:
    figure, axes = plt.subplots(2, 3)
    given = list(axes.ravel())
    assert pl.training(run, ax=given, save=tmp_path / "training.png") is given
    assert (tmp_path / "training.png").stat().st_size > 10_000
    assert plt.get_fignums() == [figure.number]
    with pytest.raises(DataError, match="ax holds 2 Axes for 6 panels; give one each"):
        pl.training(run, ax=given[:2])


def test_figsize(run: Path) -> None:
    assert pl.training(run, figsize=(9, 4)).get_size_inches().tolist() == [9, 4]


def test_panels_do_not_overlap(run: Path) -> None:
    figure = pl.training(run)
    figure.draw_without_rendering()
    boxes = [ax.get_tightbbox() for ax in figure.axes]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="expected the folder"):
        pl.training(tmp_path)
