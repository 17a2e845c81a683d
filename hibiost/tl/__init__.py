"""Pretrain, embed, find regions, cluster, predict, and ask: keywords, best matches, signatures."""

from ._annotate import annotate
from ._cluster import cluster
from ._embed import embed
from ._keywords import rank_keywords
from ._predict import predict
from ._predictor import fit_predictor
from ._pretrain import pretrain
from ._regions import regions
from ._retrieve import retrieve

__all__ = [
    "annotate",
    "cluster",
    "embed",
    "fit_predictor",
    "predict",
    "pretrain",
    "rank_keywords",
    "regions",
    "retrieve",
]
