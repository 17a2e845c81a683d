"""Pretrain, embed, cluster and predict."""

from ._cluster import cluster
from ._embed import embed
from ._predict import predict
from ._pretrain import pretrain

__all__ = ["cluster", "embed", "predict", "pretrain"]
