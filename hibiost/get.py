"""Readers of what hibiost writes: slots, and training runs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from . import keys
from .errors import DataError, MissingSlotError, RunError, nearest

__all__ = ["predicted_genes", "retrieved", "sentences", "training"]

if TYPE_CHECKING:
    from anndata import AnnData

_ORDER = (
    "event", "step", "epoch", "loss", "spot", "spot_chance", "pathway", "with_pathway", "region", "region_chance",
    "scale", "recall_1", "recall_5", "recall_10", "lr", "spots_per_second", "n_regions", "coherence",
)  # fmt: skip
"""Columns of a training run."""


class Trained(Protocol):
    """A model that remembers its training, as :class:`hibiost.model.HibioModel`."""

    @property
    def training_info(self) -> Mapping[str, Any]:
        """Recipe, history and the rest."""


def sentences(adata: AnnData, *, n_genes: int | None = None, key: str = keys.SENTENCE, sep: str = " ") -> pd.Series:
    """Gene sentences as strings, best gene first.

    Parameters
    ----------
    adata
        AnnData on which :func:`hibiost.pp.tfidf_sentences` was called.
    n_genes
        Only the first genes of each sentence; all where it is not given.
    key
        The ``key_added`` of that call.
    sep
        What stands between two genes.

    Returns
    -------
    A Series of str indexed by ``adata.obs_names``; an empty sentence is ``""``.

    Raises
    ------
    MissingSlotError
        ``obsm[key]`` or ``uns[key]`` is not there.
    DataError
        ``n_genes`` is below 1.

    Examples
    --------
    >>> import anndata as ad, numpy as np
    >>> import hibiost as hb
    >>> counts = np.array([[4, 1, 0], [4, 0, 1], [4, 0, 3]], dtype="float32")
    >>> adata = ad.AnnData(counts)
    >>> adata.var_names = ["ACTB", "ERBB2", "IGLL5"]
    >>> hb.pp.tfidf_sentences(adata, n_genes=2)
    >>> hb.get.sentences(adata).tolist()
    ['ERBB2', 'IGLL5', 'IGLL5']
    """
    if n_genes is not None and n_genes < 1:
        raise DataError(f"n_genes is {n_genes}; expected at least 1, or None for whole sentences.")
    for attribute in ("obsm", "uns"):
        _check_slot(adata, attribute, key, "hibiost.pp.tfidf_sentences")
    table = np.asarray(adata.obsm[key])[:, :n_genes]
    words = np.asarray(adata.uns[key]["genes"], dtype=object)[table]
    lines = [sep.join(row[kept]) for row, kept in zip(words, table >= 0, strict=True)]
    return pd.Series(lines, index=adata.obs_names, name=key, dtype=object)


def predicted_genes(adata: AnnData, *, key: str = keys.PREDICTED) -> pd.DataFrame:
    """How far each predicted gene can be trusted, the most trusted first.

    Parameters
    ----------
    adata
        AnnData on which :func:`hibiost.tl.predict` was called.
    key
        The ``key_added`` of that call.

    Returns
    -------
    A DataFrame indexed by gene, sorted by ``expected_pcc``, or by ``confidence`` where that was not computed. Columns,
    those that were computed:

    ``confidence``
        How far the retrieved neighbours agree, 0 to 1.
    ``expected_pcc``
        Correlation of the prediction with the measurement on slides of the reference that were held out.
    ``trusted``
        Whether that is high enough.

    Raises
    ------
    MissingSlotError
        ``uns[key]`` is not there, or tells nothing of genes but their names.

    Examples
    --------
    >>> import hibiost as hb
    >>> slide = hb.datasets.tissue(100)
    >>> slide.uns["predicted_expression"] = {  # by hb.tl.predict
    ...     "genes": ["ERBB2", "IGLL5"], "expected_pcc": [0.1, 0.4], "trusted": [False, True]
    ... }
    >>> hb.get.predicted_genes(slide).index.tolist()
    ['IGLL5', 'ERBB2']
    """
    entry = adata.uns.get(key, {})
    if "genes" not in entry:
        found = list(adata.uns)
        raise MissingSlotError(
            f"no uns[{key!r}]['genes'] in the AnnData (uns holds {found}); call hibiost.tl.predict first."
            f"{nearest(key, found)}"
        )
    columns = {name: entry[name] for name in ("confidence", "expected_pcc", "trusted") if name in entry}
    if not columns:
        raise MissingSlotError(
            f"uns[{key!r}] tells no expected_pcc: the predictor was fitted to one slide, or without calibrate; fit one "
            "to several, with hibiost.tl.fit_predictor."
        )
    table = pd.DataFrame(columns, index=pd.Index(entry["genes"], name="gene"))
    by = "expected_pcc" if "expected_pcc" in table else "confidence"
    return table.sort_values(by, ascending=False, kind="stable", na_position="last")


def retrieved(
    adata: AnnData,
    spot: str,
    *,
    reference: AnnData | None = None,
    n_genes: int | None = 10,
    key: str = keys.RETRIEVED,
) -> pd.DataFrame:
    """The best matches of one spot, as :func:`hibiost.tl.retrieve` found them.

    Parameters
    ----------
    adata
        AnnData on which :func:`hibiost.tl.retrieve` was called; it may have been cut since.
    spot
        Name of the spot, as in ``adata.obs_names``.
    reference
        The reference that was searched, for the sentences of the matches. Where ``adata`` was searched itself, it is
        taken.
    n_genes
        Genes shown of each sentence; ``None`` for all.
    key
        The ``key_added`` of that call.

    Returns
    -------
    A DataFrame, best match first, with the rank from 1 as index; columns ``spot`` and ``library_id`` in the reference,
    ``similarity``, ``row`` in the reference, and ``sentence`` where the reference is there and has sentences (NaN for a
    match that it no longer holds).

    Raises
    ------
    MissingSlotError
        Nothing was retrieved.
    DataError
        There is no such spot, or another reference than the one that was searched.

    Examples
    --------
    >>> import hibiost as hb
    >>> import numpy as np
    >>> slide = hb.datasets.tissue(100)
    >>> slide.obsm["retrieved"] = np.tile([7, 2], (100, 1))
    >>> slide.obsm["retrieved_similarity"] = np.tile([0.9, 0.8], (100, 1))
    >>> slide.uns["retrieved"] = {  # by hb.tl.retrieve
    ...     "rows": [2, 7], "obs_names": ["b", "g"], "libraries": ["C2", "C3"], "params": {"own": False}
    ... }
    >>> hb.get.retrieved(slide, slide.obs_names[0])[["spot", "library_id"]].to_numpy().tolist()
    [['g', 'C3'], ['b', 'C2']]
    """
    for attribute, name in (("obsm", key), ("obsm", f"{key}_similarity"), ("uns", key)):
        _check_slot(adata, attribute, name, "hibiost.tl.retrieve")
    if spot not in adata.obs_names:
        raise DataError(f"no spot {spot!r} in adata.obs_names.{nearest(spot, adata.obs_names)}")
    at = adata.obs_names.get_loc(spot)
    record = adata.uns[key]
    rows = np.asarray(adata.obsm[key])[at]
    place = np.searchsorted(record["rows"], rows)
    table = pd.DataFrame(
        {
            "spot": np.asarray(record["obs_names"], dtype=object)[place],
            "library_id": np.asarray(record["libraries"], dtype=object)[place],
            "similarity": np.asarray(adata.obsm[f"{key}_similarity"])[at],
            "row": rows,
        },
        index=pd.RangeIndex(1, len(rows) + 1, name="rank"),
    )
    bank = adata if reference is None and record["params"]["own"] else reference
    if reference is not None:
        _check_searched(reference, record)
    if bank is not None and keys.SENTENCE in bank.obsm:
        matches = bank[bank.obs_names.isin(table["spot"])]
        table["sentence"] = table["spot"].map(sentences(matches, n_genes=n_genes))
    return table


def _check_searched(reference: AnnData, record: Mapping[str, Any]) -> None:
    """Refuse a reference that holds other spots where matches were found."""
    rows = np.asarray(record["rows"])
    names = np.asarray(record["obs_names"], dtype=object)
    if reference.n_obs <= rows.max() or (reference.obs_names[rows] != names).any():
        raise DataError(
            f"the reference has {reference.n_obs} spots and is not the one that was searched, with "
            f"{record['params']['n_reference']} spots such as {names[0]!r} in row {rows[0]}; pass that one."
        )


def _check_slot(adata: AnnData, attribute: str, key: str, call: str) -> None:
    found = list(getattr(adata, attribute))
    if key not in found:
        raise MissingSlotError(
            f"no {attribute}[{key!r}] in the AnnData (there: {found}); call {call} first.{nearest(key, found)}"
        )


def training(run: str | os.PathLike[str] | Trained) -> pd.DataFrame:
    """What a training run measured, a row for each measurement in the order of time.

    Parameters
    ----------
    run
        Folder given to :func:`hibiost.tl.pretrain` as ``run=``, of a run that is finished, stopped or in progress; or a
        model, which remembers epochs and regions, but not the steps.

    Returns
    -------
    A DataFrame, NaN where a row did not measure a thing. Columns, those that were measured:

    ``event``
        ``"step"`` for a step of the optimiser, ``"epoch"`` for the mean over the steps of an epoch and the validation
        after it, ``"regions"`` for a renewal of the regions.
    ``step``
        Steps done, int; of a run's folder only.
    ``epoch``
        Epochs done, with a fraction within an epoch.
    ``loss``, ``spot``, ``pathway``, ``region``
        The objective and its terms (HiBio-ST, eqs 10, 11, 13 and 14), in nats but for ``pathway``, which is 0 to 1.
    ``spot_chance``, ``region_chance``
        ln of the batch size, and of the number of regions compared: what a model that knows nothing reaches.
    ``with_pathway``
        Share of the spots that have a pathway.
    ``scale``
        Factor on cosine similarities.
    ``recall_1``, ``recall_5``, ``recall_10``
        Recall@p% of the validation slides, in percent.
    ``lr``, ``spots_per_second``
        Learning rate and speed.
    ``n_regions``, ``coherence``
        Number of regions, and share of a spot's six nearest spots that are in its region.

    Raises
    ------
    RunError
        There is no such folder, it holds no metrics, or they are damaged; a model was not trained by hibiost.

    Examples
    --------
    >>> import hibiost as hb
    >>> adata = hb.datasets.tissue(100)
    >>> recipe = {"epochs": 2, "batch_size": 32, "lambda3": 0}
    >>> model = hb.tl.pretrain(adata, image_encoder="ResNet-10", recipe=recipe, run="my-run")
    >>> table = hb.get.training("my-run")
    >>> table[["event", "step", "epoch"]].iloc[-2:].to_numpy().tolist()
    [['step', 6, 2.0], ['epoch', 6, 2.0]]
    >>> hb.get.training(model)["epoch"].tolist()
    [1.0, 2.0]
    """
    rows, batch_size = _of_folder(Path(run).expanduser()) if isinstance(run, str | os.PathLike) else _of_model(run)
    table = pd.DataFrame(rows).astype({"epoch": float})
    if batch_size is not None and "spot" in table:
        table["spot_chance"] = np.where(table["spot"].notna(), math.log(batch_size), np.nan)
    return table[sorted(table, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))]


def _of_folder(folder: Path) -> tuple[list[dict[str, Any]], int | None]:
    """The lines of the metrics, but for one that is being written; and the batch size."""
    metrics = folder / "metrics.jsonl"
    expected = "expected the folder of hb.tl.pretrain(..., run=folder) once its first steps are done."
    if not metrics.is_file():
        there = f"holds {sorted(path.name for path in folder.iterdir())}" if folder.is_dir() else "is no folder"
        raise RunError(f"{folder} {there}; {expected} Of a model's folder, pass hb.model.load(folder).")
    rows = []
    for number, line in enumerate(metrics.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        try:
            found = json.loads(line)
            rows.append({name: found[name] for name in _ORDER[:3]} | found)
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"line {number} of {metrics} is no measurement ({error!r}); expected a JSON object with "
                f"{', '.join(_ORDER[:3])}. Remove the line."
            ) from error
    if not rows:
        raise RunError(f"{metrics} holds no whole line yet; {expected}")
    return rows, _batch_size(folder / "run.json")


def _batch_size(description: Path) -> int | None:
    """That of the recipe, or all spots where they are fewer."""
    try:
        known = json.loads(description.read_text())
        n_spots = sum(slide["n_spots"] for slide in known["data"].values())
        return min(known["configuration"]["recipe"]["batch_size"], n_spots)
    except (OSError, KeyError, TypeError, ValueError):
        return None


def _of_model(model: Trained) -> tuple[list[dict[str, Any]], int | None]:
    """What the model remembers, and the batch size."""
    info = getattr(model, "training_info", None)
    if not isinstance(info, Mapping) or not info.get("history"):
        raise RunError(
            f"found {type(model).__name__} without a training history; expected the folder of a run, or a model that "
            "hb.tl.pretrain trained."
        )
    events = [("epoch", entry) for entry in info["history"]] + [("regions", entry) for entry in info["regions"]]
    events.sort(key=lambda event: event[1]["epoch"])
    return [{"event": name, **entry} for name, entry in events], info["recipe"]["batch_size"]
