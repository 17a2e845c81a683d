import pandas as pd

from hibiost.benchmark import _tables as tables

TABLE = pd.DataFrame([["0.5 ± 0.1", ""], ["1", "2"]], ["a_b", "ours & theirs"], ["MSE", "Recall@1%"]).rename_axis(
    "model"
)


def test_markdown():
    lines = tables.markdown(TABLE).splitlines()
    assert lines == [
        "| model | MSE | Recall@1% |",
        "| --- | --- | --- |",
        "| a_b | 0.5 ± 0.1 |  |",
        "| ours & theirs | 1 | 2 |",
    ]


def test_latex_escapes_what_is_special():
    text = tables.latex(TABLE, "100 %")
    assert r"\caption{100 \%}" in text
    assert r"a\_b & 0.5 $\pm$ 0.1 &  \\" in text
    assert r"ours \& theirs & 1 & 2 \\" in text
    assert r"\begin{tabular}{lrr}" in text


def test_html_escapes_what_is_special():
    text = tables.html(TABLE, "a < b")
    assert text.startswith("<h2>a &lt; b</h2>")
    assert "ours &amp; theirs" in text
