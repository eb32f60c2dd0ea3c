"""Choosing what is relevant and diverse: greedy MAP of a determinantal point process (Chen, Zhang and Zhou, arXiv 1709.05135)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["greedy_map", "similarity"]

_NOTHING_NEW = 1e-9  # of a document's own 1: below this it is a repetition up to rounding
_PAIRS = 1024  # documents whose distances decide the kernel's width


def similarity(features_MF: Tensor) -> Tensor:
    """Directions of the features and the scale of a Gaussian kernel on them, as ``[M, F]`` fp64 to be given to :func:`greedy_map`.

    ``exp(-|u_i - u_j|^2)`` of two rows is 1 for equal directions and ``exp(-1)`` at the median distance. The kernel has full rank
    for distinct directions, so more documents can be chosen than there are features.
    """
    directions = torch.nn.functional.normalize(features_MF.double(), dim=1)
    step = max(1, len(directions) // _PAIRS)
    distances = torch.pdist(directions[::step])
    median = float(distances.median()) if distances.numel() else 1.0
    return directions / max(median, 1e-12)


def greedy_map(log_relevance_M: Tensor, points_MF: Tensor, count: int) -> list[int]:
    """Documents that greedily maximise ``log det(Diag(r) S Diag(r))`` with ``S_ij = exp(-|points_i - points_j|^2)``, in that order.

    The relevances factor out of the Cholesky decomposition, so it is kept for ``S`` alone, whose diagonal is 1, and the numbers stay
    of one size however small a relevance is. Each choice costs ``O(M (F + chosen))``, all of them ``O(M N (F + N))``, in ``O(M N)`` memory.

    Args:
        log_relevance_M: ``log r`` of every candidate, ``[M]``.
        points_MF: from :func:`similarity`.
        count: documents to choose.

    Returns:
        Numbers of candidates; fewer than ``count`` when all the others repeat what was chosen.
    """
    points, gains = points_MF.double(), 2 * log_relevance_M.double()
    count = min(count, len(points))
    factor_NM = points.new_zeros(count, len(points))
    left = torch.ones(len(points), dtype=torch.float64)
    chosen: list[int] = []
    while len(chosen) < count:
        scores = torch.where(left > _NOTHING_NEW, gains + left.clamp_min(_NOTHING_NEW).log(), -torch.inf)
        best = int(scores.argmax())
        if not torch.isfinite(scores[best]):
            break
        row = torch.exp(-(points - points[best]).square().sum(1))
        place = len(chosen)
        row = (row - factor_NM[:place].t() @ factor_NM[:place, best]) / left[best].sqrt()
        factor_NM[place] = row
        left = (left - row.square()).clamp_min(0.0)
        left[best] = 0.0
        chosen.append(best)
    return chosen
