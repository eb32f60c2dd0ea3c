"""The model's hot spots with hand-written gradients: RMSNorm, rotary positions, SwiGLU, the expert pair, and cross-entropy.

Autograd of the plain formulas is the oracle (``tests/unit/modeling/test_kernels.py``). What is gained over it: no gradient and no saved
activation for anything frozen, work in blocks of tokens that stay in a CPU's cache, gate and up projections as one product, and
never all logits at once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

__all__ = ["IGNORED", "linear_cross_entropy", "low_rank_pair", "rms_norm", "rotate", "swiglu", "swiglu_pair", "token_cross_entropy"]

IGNORED = -100  # target of a position that is not scored

_CPU_BLOCK = 512  # tokens; the activations of one block and one FFN stay in the last-level cache
_LOGITS_BLOCK = 1 << 21  # logits held at once (8 MiB in fp32) on a CPU
_CUDA_LOGITS_BLOCK = 1 << 28  # the same on a GPU, where launches cost more than memory
_TINY = 1e-30  # below this a probability's logarithm is taken from the logits instead


def _block(x_NH: Tensor) -> int:
    """Tokens per block of an FFN: a cache's worth on a CPU, everything elsewhere."""
    return _CPU_BLOCK if x_NH.device.type == "cpu" else max(1, x_NH.shape[0])


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        scale = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        unit = x.float() * scale
        grad = grad.float()
        grad_weight = (grad * unit).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None
        inner = grad * weight
        along = (inner * unit).mean(-1, keepdim=True)
        return inner.addcmul_(unit, along, value=-1).mul_(scale).to(x.dtype), grad_weight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``weight * x / sqrt(mean(x^2) + eps)`` over the last dimension; ``[..., H] -> [..., H]``, computed in fp32, dtype of ``x``."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps)
    return _RMSNorm.apply(x, weight, eps)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    wide = x.float()
    half = x.shape[-1] // 2
    first, second = wide[..., :half], wide[..., half:]
    out = torch.empty_like(wide)
    torch.mul(first, cos, out=out[..., :half])
    torch.mul(second, cos, out=out[..., half:])
    out[..., :half].addcmul_(second, sin, value=-sign)
    out[..., half:].addcmul_(first, sin, value=sign)
    return out.to(x.dtype)


class _Rotate(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, sin, -1.0), None, None


def rotate(x_BTND: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Turn each pair ``(x[d], x[d + D/2])`` by its position's angle: ``[B, T, heads, D]`` with tables ``[T, D/2]``."""
    cos, sin = cos_TD[:, None, :], sin_TD[:, None, :]
    if torch.compiler.is_compiling():
        first, second = x_BTND.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_BTND.dtype)
    return _Rotate.apply(x_BTND, cos, sin)


def _activate(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` of ``[n, 2I]`` whose first half is the gate."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def _swiglu_backward(gate_up: Tensor, grad_inner: Tensor, *, want_inner: bool) -> tuple[Tensor, Tensor | None]:
    """Gradient of :func:`_activate` for ``grad_inner [n, I]`` -> (``[n, 2I]``, the activation itself when wanted)."""
    gate, up = gate_up.chunk(2, dim=-1)
    out = torch.empty_like(gate_up)
    grad_gate, grad_up = out.chunk(2, dim=-1)
    active = F.silu(gate)
    torch.mul(grad_inner, active, out=grad_up)
    grad_gate.copy_(torch.ops.aten.silu_backward(grad_inner * up, gate))
    return out, active.mul_(up) if want_inner else None


class _WeightGrad:
    """The gradient of a weight as a sum over blocks of tokens, held in fp32."""

    def __init__(self, weight: Tensor, wanted: bool) -> None:
        self.total = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if wanted else None

    def add(self, grad_out: Tensor, inputs: Tensor) -> None:
        """Add ``grad_out[n, O]^T @ inputs[n, I]``."""
        if self.total is None:
            return
        if inputs.dtype == torch.float32:
            self.total.addmm_(grad_out.t(), inputs)
        else:
            self.total.add_(grad_out.t() @ inputs)

    def result(self, weight: Tensor) -> Tensor | None:
        """The sum in the weight's dtype."""
        return None if self.total is None else self.total.to(weight.dtype)


def _ffn_forward(x: Tensor, gate_up_weight: Tensor, down_weight: Tensor, out: Tensor) -> Tensor:
    """Write SwiGLU of ``x [N, H]`` into ``out [N, H]`` block by block; returns the gate and up projections ``[N, 2I]``."""
    saved = x.new_empty(x.shape[0], gate_up_weight.shape[0])
    for start in range(0, x.shape[0], _block(x)):
        rows = slice(start, start + _block(x))
        torch.mm(x[rows], gate_up_weight.t(), out=saved[rows])
        torch.mm(_activate(saved[rows]), down_weight.t(), out=out[rows])
    return saved


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_up_weight: Tensor, down_weight: Tensor) -> Tensor:
        out = torch.empty_like(x)
        gate_up_cast, down_cast = gate_up_weight.to(x.dtype), down_weight.to(x.dtype)
        saved = _ffn_forward(x, gate_up_cast, down_cast, out)
        ctx.save_for_backward(x, saved, gate_up_cast, down_cast, gate_up_weight, down_weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, saved, gate_up_cast, down_cast, gate_up_weight, down_weight = ctx.saved_tensors
        want_x, want_gate_up, want_down = ctx.needs_input_grad
        grad_x = torch.empty_like(x) if want_x else None
        of_gate_up, of_down = _WeightGrad(gate_up_weight, want_gate_up), _WeightGrad(down_weight, want_down)
        for start in range(0, x.shape[0], _block(x)):
            rows = slice(start, start + _block(x))
            grad_gate_up, inner = _swiglu_backward(saved[rows], grad[rows] @ down_cast, want_inner=want_down)
            if inner is not None:
                of_down.add(grad[rows], inner)
            of_gate_up.add(grad_gate_up, x[rows])
            if grad_x is not None:
                torch.mm(grad_gate_up, gate_up_cast, out=grad_x[rows])
        return grad_x, of_gate_up.result(gate_up_weight), of_down.result(down_weight)


def swiglu(x_NH: Tensor, gate_up_weight: Tensor, down_weight: Tensor) -> Tensor:
    """``down(silu(gate(x)) * up(x))``: ``[N, H] -> [N, H]`` with weights ``[2I, H]`` (gate rows first) and ``[H, I]``.

    Weights may be wider than ``x`` (fp32 masters in bf16 training): they are cast, and their gradients summed in fp32.
    """
    wanted = x_NH.requires_grad or gate_up_weight.requires_grad or down_weight.requires_grad
    if torch.is_grad_enabled() and wanted and not torch.compiler.is_compiling():
        return _SwiGLU.apply(x_NH, gate_up_weight, down_weight)
    gate, up = F.linear(x_NH, gate_up_weight.to(x_NH.dtype)).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down_weight.to(x_NH.dtype))


class _SwiGLUPair(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, share: Tensor, public_gate_up: Tensor, public_down: Tensor, gate_up_weight: Tensor, down_weight: Tensor
    ) -> Tensor:
        gate_up_cast, down_cast = gate_up_weight.to(x.dtype), down_weight.to(x.dtype)
        public, gap = torch.empty_like(x), torch.empty_like(x)
        public_saved = _ffn_forward(x, public_gate_up, public_down, public)
        saved = _ffn_forward(x, gate_up_cast, down_cast, gap)
        gap.sub_(public)
        ctx.save_for_backward(
            x,
            share,
            public_saved if ctx.needs_input_grad[0] else None,
            saved,
            gap,
            public_gate_up,
            public_down,
            gate_up_cast,
            down_cast,
            gate_up_weight,
            down_weight,
        )
        return public.addcmul_(gap, share.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, share, public_saved, saved, gap, public_gate_up, public_down, gate_up_cast, down_cast, *masters = ctx.saved_tensors
        want_x, want_share = ctx.needs_input_grad[:2]
        grad_x = torch.empty_like(x) if want_x else None
        of_gate_up, of_down = _WeightGrad(masters[0], ctx.needs_input_grad[4]), _WeightGrad(masters[1], ctx.needs_input_grad[5])
        for start in range(0, x.shape[0], _block(x)):
            rows = slice(start, start + _block(x))
            grad_expert = grad[rows] * share[rows].to(grad.dtype)
            grad_gate_up, inner = _swiglu_backward(saved[rows], grad_expert @ down_cast, want_inner=of_down.total is not None)
            if inner is not None:
                of_down.add(grad_expert, inner)
            of_gate_up.add(grad_gate_up, x[rows])
            if grad_x is not None:
                torch.mm(grad_gate_up, gate_up_cast, out=grad_x[rows])
                grad_public = torch.sub(grad[rows], grad_expert)
                grad_gate_up, _ = _swiglu_backward(public_saved[rows], grad_public @ public_down, want_inner=False)
                grad_x[rows].addmm_(grad_gate_up, public_gate_up)
        grad_share = (grad * gap).sum(-1, keepdim=True, dtype=torch.float32) if want_share else None
        return grad_x, grad_share, None, None, of_gate_up.result(masters[0]), of_down.result(masters[1])


def swiglu_pair(
    x_NH: Tensor, share_N1: Tensor, public_gate_up: Tensor, public_down: Tensor, gate_up_weight: Tensor, down_weight: Tensor
) -> Tensor:
    """``(1 - share) * public(x) + share * expert(x)`` with the public FFN frozen.

    Computed as ``public + share * (expert - public)``, so equal experts give the public output bit for bit, whatever the share.

    Args:
        x_NH: inputs, ``[N, H]``.
        share_N1: weight of the expert per token, ``[N, 1]`` fp32, differentiable.
        public_gate_up: ``[2I, H]`` in the dtype of ``x``; gets no gradient.
        public_down: ``[H, I]`` in the dtype of ``x``; gets no gradient.
        gate_up_weight: the expert's ``[2I, H]``; may be an fp32 master.
        down_weight: the expert's ``[H, I]``; may be an fp32 master.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _SwiGLUPair.apply(x_NH, share_N1, public_gate_up, public_down, gate_up_weight, down_weight)
    public = swiglu(x_NH, public_gate_up, public_down)
    gap = swiglu(x_NH, gate_up_weight, down_weight) - public
    return torch.addcmul(public, gap, share_N1.to(x_NH.dtype))


def low_rank_pair(x_NH: Tensor, share_N1: Tensor, public_gate_up: Tensor, public_down: Tensor, *factors: Tensor) -> Tensor:
    """``(1 - share) * public(x) + share * expert(x)`` with ``W = W_public + B A`` for each of the expert's matrices.

    The public gate and up products are made once for both, and ``W_down`` is applied to the mixture of both activations. With every ``B``
    zero the result is the public output bit for bit, whatever the share.

    Args:
        x_NH: inputs, ``[N, H]``.
        share_N1: weight of the expert per token, ``[N, 1]`` fp32, differentiable.
        public_gate_up: ``[2I, H]`` in the dtype of ``x``; gets no gradient.
        public_down: ``[H, I]`` in the dtype of ``x``; gets no gradient.
        factors: ``A [r, columns]`` and ``B [rows, r]`` of gate, up and down; may be fp32 masters.
    """
    gate_a, gate_b, up_a, up_b, down_a, down_b = (factor.to(x_NH.dtype) for factor in factors)
    base = F.linear(x_NH, public_gate_up)
    differences = F.linear(F.linear(x_NH, gate_a), gate_b), F.linear(F.linear(x_NH, up_a), up_b)
    public, expert = (F.silu(gate) * up for gate, up in (base.chunk(2, dim=-1), (base + torch.cat(differences, dim=-1)).chunk(2, dim=-1)))
    share = share_N1.to(x_NH.dtype)
    mixed = torch.addcmul(public, expert - public, share)
    return torch.addcmul(F.linear(mixed, public_down), F.linear(F.linear(expert, down_a), down_b), share)


def _rows_of_logits(x_NH: Tensor, vocab: int) -> int:
    limit = _LOGITS_BLOCK if x_NH.device.type == "cpu" else _CUDA_LOGITS_BLOCK
    return max(1, limit // vocab)


def _score(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities ``[n, V]``, log-sum-exp ``[n]`` and losses ``[n]`` of fp32 ``logits [n, V]``."""
    picked = logits.gather(1, targets[:, None])
    probabilities = torch.softmax(logits, dim=-1)
    chosen = probabilities.gather(1, targets[:, None])
    losses = -chosen.log()
    small = chosen[:, 0] < _TINY
    if bool(small.any()):
        losses[small] = torch.logsumexp(logits[small], dim=-1, keepdim=True) - picked[small]
    return probabilities, (losses + picked)[:, 0], losses[:, 0]


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, z_loss: float) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        of_weight = _WeightGrad(weight, ctx.needs_input_grad[1])
        cast = weight.to(x.dtype)
        rows_at_once = _rows_of_logits(x, weight.shape[0])
        for start in range(0, x.shape[0], rows_at_once):
            rows = slice(start, start + rows_at_once)
            slopes, log_sums, losses = _score(torch.mm(x[rows], cast.t()).float(), targets[rows])
            total += losses.sum()
            if z_loss:
                total += z_loss * log_sums.square().sum()
                slopes *= (1 + 2 * z_loss * log_sums)[:, None]
            slopes.scatter_add_(1, targets[rows, None], slopes.new_full((1, 1), -1.0).expand(slopes.shape[0], 1))
            slopes = slopes.to(x.dtype)
            if grad_x is not None:
                torch.mm(slopes, cast, out=grad_x[rows])
            of_weight.add(slopes, x[rows])
        ctx.save_for_backward(grad_x, of_weight.result(weight))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad_x, grad_weight = ctx.saved_tensors
        scaled_x = None if grad_x is None else grad_x * grad.to(grad_x.dtype)
        scaled_weight = None if grad_weight is None else grad_weight * grad.to(grad_weight.dtype)
        return scaled_x, scaled_weight, None, None


def linear_cross_entropy(x_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, *, z_loss: float = 0.0) -> Tensor:
    """Sum over the scored positions of cross-entropy (nats) plus ``z_loss * logsumexp^2``: a scalar in fp32.

    Logits are made a block of rows at a time and their gradient at once, so memory does not grow with ``N x V``.

    Args:
        x_NH: states after the final norm.
        weight_VH: the output head; no gradient is computed for it if it needs none.
        targets_N: token numbers; ``IGNORED`` positions count nothing.
        z_loss: factor of the squared log-sum-exp.
    """
    scored = targets_N != IGNORED
    if not bool(scored.all()):
        x_NH, targets_N = x_NH[scored], targets_N[scored]
    return _LinearCrossEntropy.apply(x_NH, weight_VH, targets_N, z_loss)


@torch.no_grad()
def token_cross_entropy(x_NH: Tensor, weight_VH: Tensor, targets_N: Tensor) -> Tensor:
    """Cross-entropy in nats of each position, ``[N]`` fp32, 0 where the target is ``IGNORED``; memory as in training."""
    losses = torch.empty(x_NH.shape[0], dtype=torch.float32, device=x_NH.device)
    cast = weight_VH.to(x_NH.dtype)
    rows_at_once = _rows_of_logits(x_NH, weight_VH.shape[0])
    for start in range(0, x_NH.shape[0], rows_at_once):
        rows = slice(start, start + rows_at_once)
        logits = torch.mm(x_NH[rows], cast.t()).float()
        losses[rows] = F.cross_entropy(logits, targets_N[rows], reduction="none", ignore_index=IGNORED)
    return losses
