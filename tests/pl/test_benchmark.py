import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from hibiost import pl
from hibiost.errors import DataError


@pytest.fixture
def results():
    """Two models on three slides: retrieval, prediction, few shots, clusters."""
    rows = []
    for number, model in enumerate(("ours", "chance")):
        for slide in range(3):
            common = {
                "model": model,
                "slide": f"S{slide}",
                "fold": 0,
                "seed": 0,
                "note": "",
                "fraction": np.nan,
                "target": "",
            }
            value = 0.1 * slide - 0.2 * number
            for method in ("raw", "smoothed"):
                offset = 5 * (method == "raw")
                rows.append(
                    {**common, "task": "clustering", "method": method, "metric": "ari", "value": value + offset}
                )
            rows.append(
                {**common, "task": "retrieval", "method": "retrieval", "metric": "Recall@10%", "value": 10 + value}
            )
            common |= {"method": "ridge", "metric": "pcc", "target": "raw"}
            rows.append({**common, "task": "prediction", "value": value})
            rows.append({**common, "task": "prediction", "slide": "pooled", "value": 100.0})
            rows += [{**common, "task": "few-shot", "fraction": f, "value": value + f} for f in (0.5, 0.1)]
    return pd.DataFrame(rows)


def test_bars_are_means_over_slides_and_dots_the_slides(results):
    figure = pl.benchmark(results)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["ARI, smoothed clusters", "PCC, raw counts", "Recall@10% (%)", "PCC of few shots, raw"]
    for ax, expected in zip(figure.axes[:3], ([-0.1, 0.1], [-0.1, 0.1], [9.9, 10.1]), strict=True):
        np.testing.assert_allclose([bar.get_width() for bar in ax.patches], expected)
        assert [len(line.get_xdata()) for line in ax.lines] == [3, 3]
    names = [text.get_text() for text in figure.axes[1].get_yticklabels()]
    assert names == ["chance", "ours, ridge"]


def test_lines_rise_with_the_share_of_spots(results):
    ax = pl.benchmark(results).axes[3]
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [10, 50])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.2, 0.6])


def test_own_axes_and_files(results, tmp_path):
    _, axes = plt.subplots(1, 4)
    assert pl.benchmark(results, ax=axes) is axes
    pl.benchmark(results, save=tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000
    with pytest.raises(DataError, match="ax holds 1 Axes for 4 panels"):
        pl.benchmark(results, ax=axes[0])


def test_nothing_to_draw(results):
    with pytest.raises(DataError, match="no score that is drawn"):
        pl.benchmark(results.assign(value=np.nan))
