"""The hand-written gradients are those of autograd on the plain formulas, with more tokens than one block."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.modeling import kernels, pointwise


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks, so that the sums over blocks are exercised; fp32 stays, as the kernels compute in it."""
    monkeypatch.setattr(kernels, "_CPU_BLOCK", 8)
    monkeypatch.setattr(kernels, "_LOGITS_BLOCK", 64)
    monkeypatch.setattr(kernels, "_ATTENTION_BLOCK", 4)


def _draw(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _close(ours: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: Sequence[Tensor], frozen: Sequence[int] = ()) -> None:
    results = []
    for function in (ours, plain):
        leaves = [value.clone().requires_grad_(number not in frozen) for number, value in enumerate(inputs)]
        out = function(*leaves)
        out.backward(torch.linspace(-1, 1, out.numel()).view_as(out))
        results.append((out.detach(), [leaf.grad for leaf in leaves]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)
    for number, (mine, theirs) in enumerate(zip(results[0][1], results[1][1], strict=True)):
        if number in frozen:
            assert mine is None
        else:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4, msg=lambda text, number=number: f"input {number}: {text}")


def test_rms_norm() -> None:
    x, weight = _draw((3, 5, 12), (12,))
    _close(lambda x, w: kernels.rms_norm(x, w, 1e-5), lambda x, w: F.rms_norm(x, (12,), w, 1e-5), (x, weight))


def test_rotate() -> None:
    (x, angles) = _draw((2, 5, 3, 8), (5, 4))

    def plain(x: Tensor) -> Tensor:
        turned = (
            torch.view_as_complex(torch.stack(x.chunk(2, dim=-1), dim=-1).contiguous()) * torch.polar(torch.ones(5, 4), angles)[:, None]
        )
        return torch.cat((turned.real, turned.imag), dim=-1)

    _close(lambda x: kernels.rotate(x, angles.cos(), angles.sin()), plain, (x,))


def _plain_swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down)


@pytest.mark.parametrize("frozen", [(), (0,), (1, 2), (2,)])
def test_swiglu(frozen: tuple[int, ...]) -> None:
    _close(kernels.swiglu, _plain_swiglu, _draw((21, 6), (10, 6), (6, 5)), frozen)


@pytest.mark.parametrize("frozen", [(2, 3), (0, 2, 3), (0, 1, 2, 3), (2, 3, 4)])
def test_swiglu_pair(frozen: tuple[int, ...]) -> None:
    x, share, *weights = _draw((21, 6), (21, 1), (10, 6), (6, 5), (10, 6), (6, 5))

    def plain(x: Tensor, share: Tensor, *weights: Tensor) -> Tensor:
        return (1 - share) * _plain_swiglu(x, *weights[:2]) + share * _plain_swiglu(x, *weights[2:])

    _close(kernels.swiglu_pair, plain, (x, torch.sigmoid(share), *weights), frozen)


@pytest.mark.parametrize("frozen", [(), (1,), (0,)])
def test_linear_cross_entropy(frozen: tuple[int, ...]) -> None:
    x, weight = _draw((21, 6), (11, 6))
    targets = torch.arange(21) % 11
    targets[4] = kernels.IGNORED

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        logits = x @ weight.t()
        z = 0.1 * torch.logsumexp(logits[targets >= 0], -1).square().sum()
        return F.cross_entropy(logits, targets, reduction="sum") + z

    _close(lambda x, w: kernels.linear_cross_entropy(x, w, targets, z_loss=0.1), plain, (x, weight), frozen)


def test_cross_entropy_of_an_impossible_token() -> None:
    """A probability that underflows still has a finite loss and the right one."""
    x = torch.tensor([[200.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]])
    loss = kernels.linear_cross_entropy(x, weight, torch.tensor([1]))
    loss.backward()
    assert float(loss.detach()) == 400.0
    assert float(x.grad) == 2.0


def test_weight_gradients_of_bf16_work_are_wide() -> None:
    """fp32 masters under bf16 inputs get fp32 gradients near the exact ones."""
    x, gate_up, down = _draw((64, 6), (10, 6), (6, 5))
    masters = [value.clone().requires_grad_() for value in (gate_up, down)]
    kernels.swiglu(x.bfloat16(), *masters).float().sum().backward()
    exact = [value.clone().requires_grad_() for value in (gate_up, down)]
    _plain_swiglu(x, *exact).sum().backward()
    for mine, theirs in zip(masters, exact, strict=True):
        assert mine.grad.dtype == torch.float32
        assert float((mine.grad - theirs.grad).norm() / theirs.grad.norm()) < 0.02


def _low_rank_inputs(rank: int = 3) -> list[Tensor]:
    factors = [(rank, 6), (5, rank), (rank, 6), (5, rank), (rank, 5), (6, rank)]
    x, share, *weights = _draw((21, 6), (21, 1), (10, 6), (6, 5), *factors)
    return [x, torch.sigmoid(share), *weights]


@pytest.mark.parametrize("frozen", [(2, 3), (0, 2, 3), (0, 1, 2, 3)])
def test_low_rank_pair_is_the_pair_of_the_materialised_expert(frozen: tuple[int, ...]) -> None:
    def plain(x: Tensor, share: Tensor, gate_up: Tensor, down: Tensor, *factors: Tensor) -> Tensor:
        gate_a, gate_b, up_a, up_b, down_a, down_b = factors
        expert_gate_up = gate_up + torch.cat((gate_b @ gate_a, up_b @ up_a))
        return (1 - share) * _plain_swiglu(x, gate_up, down) + share * _plain_swiglu(x, expert_gate_up, down + down_b @ down_a)

    _close(kernels.low_rank_pair, plain, _low_rank_inputs(), frozen)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_compiled_elementwise_parts_are_the_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pointwise, "_compiled", {})
    x, grad, scores, other, along, angles = _draw((8, 12), (8, 6), (2, 8, 12), (2, 8, 12), (2, 8, 1), (8, 6))

    def results() -> list[Tensor]:
        return [
            *pointwise.activate_backward(x, grad),
            *pointwise.mix(x, x + 1, along[0].sigmoid()),
            *pointwise.mix_backward(x, x + 1, grad, grad * 2, along[0].sigmoid()),
            pointwise.norm_backward(x, x[0], x[:, :1].square(), x + 1),
            pointwise.turn(x, angles.cos(), angles.sin()),
            pointwise.attention_backward(scores, other.clone(), along, 0.5),
        ]

    plain = results()
    assert pointwise.compile_pointwise()
    assert len(pointwise._compiled) == 6
    torch.testing.assert_close(results(), plain)


@pytest.mark.parametrize("which", ["causal", "documents"])
def test_attention(which: str) -> None:
    """Eleven tokens in blocks of four; the second sequence is two documents."""
    q, k, v = _draw(*[(2, 3, 11, 4)] * 3)
    segments = torch.tensor([[0] * 11, [0] * 5 + [1] * 6])
    allowed = (segments[:, None, :, None] == segments[:, None, None, :]) & torch.ones(11, 11, dtype=torch.bool).tril()
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf")) if which == "documents" else None

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)

    _close(lambda q, k, v: kernels.attend(q, k, v, mask, causal=mask is None), plain, (q, k, v))


@pytest.mark.parametrize("frozen", [(), (0,), (1,)])
def test_linear_with_a_weight_of_another_dtype(frozen: tuple[int, ...]) -> None:
    x, weight = _draw((3, 7, 6), (5, 6))
    weight = weight.bfloat16()
    leaves = [x.requires_grad_(0 not in frozen), weight.requires_grad_(1 not in frozen)]
    out = kernels.linear(*leaves)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, F.linear(x, weight.float()))
    out.sum().backward()
    wide = [x.detach().clone().requires_grad_(), weight.detach().float().requires_grad_()]
    F.linear(*wide).sum().backward()
    for number, (mine, theirs) in enumerate(zip(leaves, wide, strict=True)):
        if number in frozen:
            assert mine.grad is None
        else:
            torch.testing.assert_close(mine.grad, theirs.grad.to(mine.dtype))
