"""Matrix products: by oneDNN for fp32 on a CPU, else by ``torch.mm``, which calls MKL there and cuBLAS on a GPU.

oneDNN's products are a tenth to a third faster than MKL's where MKL does not know the CPU (``docs/performance.md``), and its operator
can be called directly only under a private name, so this is the one place that does.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["WeightGrad", "add_product", "multiplies_bf16", "product", "stacked"]

_SLIM = 64  # rows or columns


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 products; a CPU without them is ten to a hundred times slower in bf16 than in fp32."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _by_onednn(x_NK: Tensor, weight_MK: Tensor) -> bool:
    if x_NK.device.type != "cpu" or x_NK.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return False
    # Slim products are no faster there, and of matrices with gaps between rows some are made by a loop that is a thousand times slower.
    return min(*x_NK.shape, weight_MK.shape[0]) >= _SLIM and _without_gaps(x_NK) and _without_gaps(weight_MK)


def _without_gaps(matrix: Tensor) -> bool:
    return matrix.is_contiguous() or matrix.t().is_contiguous()


def product(x_NK: Tensor, weight_MK: Tensor) -> Tensor:
    """``x @ weight^T``: a new ``[N, M]``. Not differentiable."""
    if _by_onednn(x_NK, weight_MK):
        made: Tensor = torch.ops.mkldnn._linear_pointwise(x_NK, weight_MK, None, "none", [], "")
        return made
    return torch.mm(x_NK, weight_MK.t())


def add_product(total_NM: Tensor, x_NK: Tensor, weight_MK: Tensor) -> Tensor:
    """``total + x @ weight^T``; ``total`` is given up and may be what comes back. Not differentiable."""
    if _by_onednn(x_NK, weight_MK):
        made: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x_NK, total_NM, weight_MK, None, "add")
        return made
    return total_NM.addmm_(x_NK, weight_MK.t())


def stacked(blocks: Iterable[Tensor]) -> Tensor:
    """Blocks of rows as one tensor; a single one as it is."""
    first, *rest = blocks
    return torch.cat((first, *rest)) if rest else first


class WeightGrad:
    """The gradient of a weight ``[O, I]`` as a sum over blocks of tokens, held in fp32.

    The product's rows are the narrower side, which is faster; the sum is turned at the end.
    """

    def __init__(self, weight: Tensor, wanted: bool) -> None:
        self._turned = weight.shape[0] > weight.shape[1]
        self._weight, self._wanted = weight, wanted
        self._total: Tensor | None = None

    def add(self, grad_out: Tensor, inputs: Tensor) -> None:
        """Add ``grad_out[n, O]^T @ inputs[n, I]``."""
        if not self._wanted:
            return
        narrow, wide = (inputs, grad_out) if self._turned else (grad_out, inputs)
        if self._total is None:
            self._total = product(narrow.t(), wide.t()).float()
        elif inputs.dtype == torch.float32:
            self._total = add_product(self._total, narrow.t(), wide.t())
        else:
            self._total += product(narrow.t(), wide.t())

    def result(self) -> Tensor | None:
        """The sum in the weight's dtype and layout; None if it was not wanted."""
        if not self._wanted:
            return None
        if self._total is None:
            return torch.zeros_like(self._weight)
        return (self._total.t().contiguous() if self._turned else self._total).to(self._weight.dtype)
