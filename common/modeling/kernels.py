"""The model's hot spots with hand-written gradients: norm, rotary positions, attention, SwiGLU, expert pairs, and cross-entropy.

Autograd of the plain formulas is the oracle (``tests/unit/modeling/test_modeling_kernels.py``). What is gained over it: no gradient and no
saved activation for anything frozen, work in blocks of tokens that stay in a CPU's cache, gate and up projections as one product, and
never all logits at once. Weights may have another dtype than the activations: they are cast at each use, in backward again, so that no copy
of a weight outlives its product. ``docs/performance.md`` has what each step gained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from common.modeling.pointwise import activate, activate_backward, attention_backward, mix, mix_backward, norm_backward, turn
from common.modeling.products import WeightGrad, add_product, product, stacked

__all__ = [
    "IGNORED",
    "attend",
    "linear",
    "linear_cross_entropy",
    "low_rank_pair",
    "rms_norm",
    "rotate",
    "swiglu",
    "swiglu_pair",
    "token_cross_entropy",
]

IGNORED = -100  # target of a position that is not scored

_CPU_BLOCK = 512  # tokens; the activations of one block and one FFN stay in the last-level cache
_ATTENTION_BLOCK = 64  # query rows; keys after a block are skipped, which saves nearly half of the causal square
_LOGITS_BLOCK = 1 << 22  # logits held at once (16 MiB in fp32) on a CPU
_CUDA_LOGITS_BLOCK = 1 << 28  # the same on a GPU, where launches cost more than memory
_TINY = 1e-30  # below this a probability's logarithm is taken from the logits instead


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return product(x.flatten(0, -2), weight.to(x.dtype)).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        flat = grad.flatten(0, -2)
        of_weight = WeightGrad(weight, ctx.needs_input_grad[1])
        if x is not None:
            of_weight.add(flat, x.flatten(0, -2))
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = product(flat, weight.to(grad.dtype).t()).view(*grad.shape[:-1], weight.shape[1])
        return grad_x, of_weight.result()


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight^T`` in the dtype of ``x``; a weight of another dtype is cast, and the cast is not kept for backward."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return F.linear(x, weight.to(x.dtype))
    return _Linear.apply(x, weight)


def _blocks(x_NH: Tensor) -> Iterator[slice]:
    """The tokens in blocks for an FFN: a cache's worth on a CPU, everything elsewhere."""
    size = _CPU_BLOCK if x_NH.device.type == "cpu" else max(1, x_NH.shape[0])
    return (slice(start, start + size) for start in range(0, x_NH.shape[0], size))


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
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad.float() * x.float() * scale).flatten(0, -2).sum(0).to(weight.dtype)
        return norm_backward(x, weight, scale, grad) if ctx.needs_input_grad[0] else None, grad_weight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``weight * x / sqrt(mean(x^2) + eps)`` over the last dimension; ``[..., H] -> [..., H]``, computed in fp32, dtype of ``x``."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps)
    return _RMSNorm.apply(x, weight, eps)


class _Rotate(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turn(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return turn(grad, cos, -sin), None, None


def rotate(x_BTND: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Turn each pair ``(x[d], x[d + D/2])`` by its position's angle: ``[B, T, heads, D]`` with tables ``[T, D/2]``."""
    cos, sin = cos_TD[:, None, :], sin_TD[:, None, :]
    if torch.compiler.is_compiling():
        first, second = x_BTND.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_BTND.dtype)
    return _Rotate.apply(x_BTND, cos, sin)


class _Attend(Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, mask is None, attn_mask=mask)
        ctx.save_for_backward(q, k, v, out, log_sums, mask)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Products by rows of queries over the keys up to each block's end; the scores are made again from the log-sum-exps."""
        *activations, log_sums, mask = ctx.saved_tensors
        shape = grad.shape
        heads, length = shape[1:3]
        q, k, v, out, grad = (each.reshape(-1, length, shape[-1]) for each in (*activations, grad))
        log_sums = log_sums.reshape(-1, length, 1)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        along, scale = (grad * out).sum(-1, keepdim=True), q.shape[-1] ** -0.5
        for start in range(0, length, _ATTENTION_BLOCK):
            end = min(length, start + _ATTENTION_BLOCK)
            rows, grad_rows = q[:, start:end], grad[:, start:end]
            scores = torch.baddbmm(log_sums[:, start:end], rows, k[:, :end].transpose(1, 2), beta=-1, alpha=scale)
            if mask is not None:
                scores = scores.view(-1, heads, end - start, end).add_(mask[:, :, start:end, :end]).flatten(0, 1)
            probabilities = scores.exp_()
            if mask is None:
                probabilities[:, :, start:].tril_()
            grad_v[:, :end].baddbmm_(probabilities.transpose(1, 2), grad_rows)
            grad_scores = torch.bmm(grad_rows, v[:, :end].transpose(1, 2))
            grad_scores = attention_backward(probabilities, grad_scores, along[:, start:end], scale)
            torch.bmm(grad_scores, k[:, :end], out=grad_q[:, start:end])
            grad_k[:, :end].baddbmm_(grad_scores.transpose(1, 2), rows)
        return grad_q.view(shape), grad_k.view(shape), grad_v.view(shape), None


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
    """Attention of ``[B, heads, T, D]`` queries over as many heads of keys and values.

    Args:
        q: queries.
        k: keys, ``[B, heads, S, D]``.
        v: values, as the keys.
        mask: added to the scaled scores, ``[1 or B, 1, T, S]`` in the dtype of ``q``: zero or minus infinity, and
            minus infinity above the diagonal.
        causal: without a mask, no query sees a later key.
    """
    square = causal or (mask is not None and q.shape[2] == k.shape[2])
    plain = q.device.type != "cpu" or q.dtype != torch.float32 or torch.compiler.is_compiling()
    if plain or not square or not (torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return _Attend.apply(q, k, v, mask)


def _ffn_forward(x: Tensor, gate_up_weight: Tensor, down_weight: Tensor) -> tuple[Tensor, Tensor]:
    """SwiGLU of ``x [N, H]`` -> its result ``[N, H]``, and the gate and up projections ``[N, 2I]``."""
    down, gate_up = down_weight.to(x.dtype), product(x, gate_up_weight.to(x.dtype))
    return stacked(product(activate(gate_up[rows]), down) for rows in _blocks(x)), gate_up


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_up_weight: Tensor, down_weight: Tensor) -> Tensor:
        out, gate_up = _ffn_forward(x, gate_up_weight, down_weight)
        ctx.save_for_backward(x, gate_up, gate_up_weight, down_weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, gate_up, gate_up_weight, down_weight = ctx.saved_tensors
        want_x, want_gate_up, want_down = ctx.needs_input_grad
        gate_up_cast, down_cast = gate_up_weight.to(x.dtype), down_weight.to(x.dtype)
        grads_x = []
        of_gate_up, of_down = WeightGrad(gate_up_weight, want_gate_up), WeightGrad(down_weight, want_down)
        for rows in _blocks(x):
            grad_gate_up, inner = activate_backward(gate_up[rows], product(grad[rows], down_cast.t()))
            of_down.add(grad[rows], inner)
            of_gate_up.add(grad_gate_up, x[rows])
            if want_x:
                grads_x.append(product(grad_gate_up, gate_up_cast.t()))
        return stacked(grads_x) if want_x else None, of_gate_up.result(), of_down.result()


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
        public, public_saved = _ffn_forward(x, public_gate_up, public_down)
        gap, saved = _ffn_forward(x, gate_up_weight, down_weight)
        gap.sub_(public)
        weights = (public_gate_up, public_down, gate_up_weight, down_weight)
        ctx.save_for_backward(x, share, public_saved if ctx.needs_input_grad[0] else None, saved, gap, *weights)
        return public.addcmul_(gap, share.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, share, public_saved, saved, gap, *weights = ctx.saved_tensors
        public_gate_up, public_down, gate_up, down = (weight.to(x.dtype) for weight in weights)
        want_x, want_share = ctx.needs_input_grad[:2]
        grads_x = []
        of_gate_up, of_down = WeightGrad(weights[2], ctx.needs_input_grad[4]), WeightGrad(weights[3], ctx.needs_input_grad[5])
        for rows in _blocks(x):
            grad_expert = grad[rows] * share[rows].to(grad.dtype)
            grad_gate_up, inner = activate_backward(saved[rows], product(grad_expert, down.t()))
            of_down.add(grad_expert, inner)
            of_gate_up.add(grad_gate_up, x[rows])
            if want_x:
                of_expert = product(grad_gate_up, gate_up.t())
                grad_public = torch.sub(grad[rows], grad_expert)
                grad_gate_up, _ = activate_backward(public_saved[rows], product(grad_public, public_down.t()))
                grads_x.append(add_product(of_expert, grad_gate_up, public_gate_up.t()))
        grad_share = (grad * gap).sum(-1, keepdim=True, dtype=torch.float32) if want_share else None
        return stacked(grads_x) if want_x else None, grad_share, None, None, of_gate_up.result(), of_down.result()


def swiglu_pair(
    x_NH: Tensor, share_N1: Tensor, public_gate_up: Tensor, public_down: Tensor, gate_up_weight: Tensor, down_weight: Tensor
) -> Tensor:
    """``(1 - share) * public(x) + share * expert(x)`` with the public FFN frozen.

    Computed as ``public + share * (expert - public)``, so equal experts give the public output bit for bit, whatever the share.

    Args:
        x_NH: inputs, ``[N, H]``.
        share_N1: weight of the expert per token, ``[N, 1]`` fp32, differentiable.
        public_gate_up: ``[2I, H]``; gets no gradient.
        public_down: ``[H, I]``; gets no gradient.
        gate_up_weight: the expert's ``[2I, H]``; may be an fp32 master.
        down_weight: the expert's ``[H, I]``; may be an fp32 master.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _SwiGLUPair.apply(x_NH, share_N1, public_gate_up, public_down, gate_up_weight, down_weight)
    public = swiglu(x_NH, public_gate_up, public_down)
    gap = swiglu(x_NH, gate_up_weight, down_weight) - public
    return torch.addcmul(public, gap, share_N1.to(x_NH.dtype))


class _LowRankPair(Function):
    """Gate's and up's ``A`` are one matrix ``[2r, H]`` here: slim products are slow, and slimmer ones slower."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: Tensor, public_gate_up: Tensor, public_down: Tensor, *factors: Tensor) -> Tensor:
        into, (gate_b, up_b, down_a, down_b) = _factors(factors, x.dtype)
        base, down, (inner, rank) = product(x, public_gate_up.to(x.dtype)), public_down.to(x.dtype), gate_b.shape
        narrow, difference, outs, narrow_downs = product(x, into), torch.empty_like(base), [], []
        for rows in _blocks(x):
            torch.mm(narrow[rows, :rank], gate_b.t(), out=difference[rows, :inner])
            torch.mm(narrow[rows, rank:], up_b.t(), out=difference[rows, inner:])
            weight = share[rows].to(x.dtype)
            mixed, own = mix(base[rows], difference[rows], weight)
            narrow_down = product(own, down_a)
            outs.append(add_product(product(narrow_down * weight, down_b), mixed, down))
            narrow_downs.append(narrow_down)
        ctx.save_for_backward(x, share, base, difference, narrow, stacked(narrow_downs), public_gate_up, public_down, *factors)
        return stacked(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, share, base, difference, narrow, narrow_down, public_gate_up, public_down, *factors = ctx.saved_tensors
        gate_up, down = public_gate_up.to(x.dtype), public_down.to(x.dtype)
        into, (gate_b, up_b, down_a, down_b) = _factors(factors, x.dtype)
        grads_x, grad_share, (inner, rank) = [], torch.empty_like(share), gate_b.shape
        sums = _LowRankGrads(factors, ctx.needs_input_grad[4:])
        for rows in _blocks(x):
            weight = share[rows].to(x.dtype)
            grad_mixed, grad_narrow = product(grad[rows], down.t()), product(grad[rows], down_b.t())
            weighted = grad_narrow * weight
            grad_own = product(weighted, down_a.t())
            grad_difference, grad_base, own, gap = mix_backward(base[rows], difference[rows], grad_mixed, grad_own, weight)
            grad_share[rows] = gap + (grad_narrow * narrow_down[rows]).sum(-1, keepdim=True, dtype=torch.float32)
            of_gate, of_up = grad_difference[:, :inner], grad_difference[:, inner:]
            grad_into = torch.empty_like(narrow[rows])
            torch.mm(of_gate, gate_b, out=grad_into[:, :rank])
            torch.mm(of_up, up_b, out=grad_into[:, rank:])
            sums.add(
                (grad_into, x[rows]), (of_gate, narrow[rows, :rank]), (of_up, narrow[rows, rank:]),
                (weighted, own), (grad[rows] * weight, narrow_down[rows]),
            )  # fmt: skip
            if ctx.needs_input_grad[0]:
                grads_x.append(add_product(product(grad_into, into.t()), grad_base, gate_up.t()))
        return stacked(grads_x) if grads_x else None, grad_share, None, None, *sums.results()


def _factors(factors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, ...]]:
    """``A`` of gate and up as one matrix, and the other four, cast."""
    gate_a, gate_b, up_a, up_b, down_a, down_b = (factor.to(dtype) for factor in factors)
    return torch.cat((gate_a, up_a)), (gate_b, up_b, down_a, down_b)


class _LowRankGrads:
    """Sums over blocks of tokens of the gradients of ``A`` and ``B`` of gate, up and down."""

    def __init__(self, factors: Sequence[Tensor], wanted: Sequence[bool]) -> None:
        gate_a, gate_b, up_a, *others = factors
        weights = (torch.cat((gate_a, up_a)), gate_b, *others)
        self._wanted = wanted
        self._sums = [
            WeightGrad(weight, want) for weight, want in zip(weights, (wanted[0] or wanted[2], wanted[1], *wanted[3:]), strict=True)
        ]

    def add(self, *parts: tuple[Tensor, Tensor]) -> None:
        """Add one block: the gradient of its output and the input of both ``A`` of gate and up, of gate's and up's ``B``, and of down's."""
        for each, (grad_out, inputs) in zip(self._sums, parts, strict=True):
            each.add(grad_out, inputs)

    def results(self) -> list[Tensor | None]:
        """In the order of the factors."""
        into, gate_b, *others = (each.result() for each in self._sums)
        gate_a, up_a = (None, None) if into is None else into.chunk(2)
        return [gate_a if self._wanted[0] else None, gate_b, up_a if self._wanted[2] else None, *others]


def low_rank_pair(x_NH: Tensor, share_N1: Tensor, public_gate_up: Tensor, public_down: Tensor, *factors: Tensor) -> Tensor:
    """``(1 - share) * public(x) + share * expert(x)`` with ``W = W_public + B A`` for each of the expert's matrices.

    The public gate and up products are made once for both, and ``W_down`` is applied to the mixture of both activations. With every ``B``
    zero the result is the public output bit for bit, whatever the share.

    Args:
        x_NH: inputs, ``[N, H]``.
        share_N1: weight of the expert per token, ``[N, 1]`` fp32, differentiable.
        public_gate_up: ``[2I, H]``; gets no gradient.
        public_down: ``[H, I]``; gets no gradient.
        factors: ``A [r, columns]`` and ``B [rows, r]`` of gate, up and down; may be fp32 masters.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _LowRankPair.apply(x_NH, share_N1, public_gate_up, public_down, *factors)
    gate_a, gate_b, up_a, up_b, down_a, down_b = (factor.to(x_NH.dtype) for factor in factors)
    base = F.linear(x_NH, public_gate_up.to(x_NH.dtype))
    differences = F.linear(F.linear(x_NH, gate_a), gate_b), F.linear(F.linear(x_NH, up_a), up_b)
    public, expert = (F.silu(gate) * up for gate, up in (base.chunk(2, dim=-1), (base + torch.cat(differences, dim=-1)).chunk(2, dim=-1)))
    share = share_N1.to(x_NH.dtype)
    mixed = torch.addcmul(public, expert - public, share)
    return torch.addcmul(F.linear(mixed, public_down.to(x_NH.dtype)), F.linear(F.linear(expert, down_a), down_b), share)


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
        grads_x: list[Tensor] = []
        of_weight = WeightGrad(weight, ctx.needs_input_grad[1])
        cast = weight.to(x.dtype)
        rows_at_once = _rows_of_logits(x, weight.shape[0])
        for start in range(0, x.shape[0], rows_at_once):
            rows = slice(start, start + rows_at_once)
            slopes, log_sums, losses = _score(product(x[rows], cast).float(), targets[rows])
            total += losses.sum()
            if z_loss:
                total += z_loss * log_sums.square().sum()
                slopes *= (1 + 2 * z_loss * log_sums)[:, None]
            slopes.scatter_add_(1, targets[rows, None], slopes.new_full((1, 1), -1.0).expand(slopes.shape[0], 1))
            slopes = slopes.to(x.dtype)
            if ctx.needs_input_grad[0]:
                grads_x.append(product(slopes, cast.t()))
            of_weight.add(slopes, x[rows])
        ctx.save_for_backward(stacked(grads_x) if grads_x else None, of_weight.result())
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
        logits = product(x_NH[rows], cast).float()
        losses[rows] = F.cross_entropy(logits, targets_N[rows], reduction="none", ignore_index=IGNORED)
    return losses
