"""Muon's update (Jordan 2024, "Muon: an optimizer for hidden layers in neural networks"), shared by anchor and expert training.

A matrix's momentum is replaced by the nearest matrix with equal singular values, found by a few Newton-Schulz iterations.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["muon_update", "orthogonalise"]

_ITERATIONS = 5
_QUINTIC = (3.4445, -4.7750, 2.0315)  # coefficients of the published iteration
_SCALE = 0.2  # gives the update the root mean square of AdamW's (arXiv 2502.16982), so that both use the same learning rates


def orthogonalise(matrices_NOI: Tensor) -> Tensor:
    """Approximately ``U V^T`` of each matrix ``U S V^T``; ``[N, O, I] -> [N, O, I]``, in float32 on a CPU, else in bfloat16."""
    a, b, c = _QUINTIC
    x = matrices_NOI.float() if matrices_NOI.device.type == "cpu" else matrices_NOI.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices_NOI.dtype)


def muon_update(momenta_NOI: Tensor, *, maps: int = 1) -> Tensor:
    """What a step of Muon subtracts at a learning rate of 1; ``[N, O, I] -> [N, O, I]``.

    Args:
        momenta_NOI: momentum of several matrices of one shape.
        maps: linear maps that lie below each other in one matrix (2 for the gate and up projections); each is turned by itself.
    """
    _, out, inner = momenta_NOI.shape
    rows = out // maps
    return (orthogonalise(momenta_NOI.reshape(-1, rows, inner)) * (_SCALE * max(rows, inner) ** 0.5)).reshape(momenta_NOI.shape)
