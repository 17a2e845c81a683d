"""Pretrain, embed, find regions, cluster and predict."""

from ._cluster import cluster
from ._embed import embed
from ._predict import predict
from ._pretrain import pretrain
from ._regions import regions

__all__ = ["cluster", "embed", "predict", "pretrain", "regions"]
