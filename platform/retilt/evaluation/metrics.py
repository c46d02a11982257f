"""What a rank is worth: hit rate, normalised discounted cumulative gain and reciprocal rank of single targets.

    HR@K   = 1[r ≤ K]                     (eq. 21 of arXiv:2603.10279)
    NDCG@K = 1[r ≤ K] / log2(r + 1)       (eq. 22: one relevant item, so the ideal gain is 1)
    MRR    = 1 / r                        (eq. 23)

each before the mean over targets. P targets, M metrics.
"""

from __future__ import annotations

import torch
from torch import Tensor

NAMES = ("ndcg@10", "ndcg@50", "hr@10", "hr@50", "mrr")
TITLES = {"ndcg@10": "NDCG@10", "ndcg@50": "NDCG@50", "hr@10": "HR@10", "hr@50": "HR@50", "mrr": "MRR"}

MISS = 1 << 62
"""The rank of a target that the policy cannot have learned: every metric is exactly 0 from here on."""


def metrics(rank_P: Tensor) -> Tensor:
    """Every metric of every target: (P,) int64 ranks (1 = best) → (P, 5) float64, columns as in ``NAMES``.

    >>> metrics(torch.tensor([1, 3, 11, MISS])).tolist()[:2]
    [[1.0, 1.0, 1.0, 1.0, 1.0], [0.5, 0.5, 1.0, 1.0, 0.3333333333333333]]
    """
    r_P = rank_P.double()
    gain_P = 1 / torch.log2(r_P + 1)
    top_P, wide_P = (rank_P <= 10).double(), (rank_P <= 50).double()
    reciprocal_P = torch.where(rank_P < MISS, 1 / r_P, 0.0)
    return torch.stack([gain_P * top_P, gain_P * wide_P, top_P, wide_P, reciprocal_P], dim=1)
