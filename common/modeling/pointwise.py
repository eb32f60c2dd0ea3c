"""The elementwise parts of the hand-written gradients: plain formulas, which :func:`compile_pointwise` has fused by inductor on a CPU.

The matrix products between them stay with the vendor's library, which a compiler does not better.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["activate", "activate_backward", "attention_backward", "compile_pointwise", "mix", "mix_backward", "norm_backward", "turn"]

logger = logging.getLogger(__name__)

_compiled: dict[str, Callable[..., tuple[Tensor, ...]]] = {}


def compile_pointwise() -> bool:
    """Use compiled forms in this process from now on; each is compiled at its first call, which takes seconds.

    Returns:
        False, with a warning, where there is no C++ compiler: the plain formulas stay.
    """
    if not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        logger.warning("There is no C++ compiler, so training goes on without compiled elementwise kernels.")
        return False
    for function in (_activate_backward, _mix, _mix_backward, _norm_backward, _turn, _attention_backward):
        _compiled.setdefault(function.__name__, torch.compile(function))
    return True


def _run(function: Callable[..., tuple[Tensor, ...]], *arguments: Tensor | float) -> tuple[Tensor, ...]:
    return _compiled.get(function.__name__, function)(*arguments)


def activate(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` of ``[n, 2I]`` whose first half is the gate."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def _activate_backward(gate_up: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    gate, up = gate_up.chunk(2, dim=-1)
    sigmoid = torch.sigmoid(gate)
    active = gate * sigmoid
    return torch.cat((grad * up * (sigmoid + active * (1 - sigmoid)), grad * active), dim=-1), active * up


def activate_backward(gate_up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of :func:`activate` for ``grad [n, I]`` -> (``[n, 2I]``, the activation itself ``[n, I]``)."""
    if _activate_backward.__name__ in _compiled:
        outer, inner = _run(_activate_backward, gate_up, grad)
        return outer, inner
    gate, up = gate_up.chunk(2, dim=-1)
    out = torch.empty_like(gate_up)
    grad_gate, grad_up = out.chunk(2, dim=-1)
    active = F.silu(gate)
    torch.mul(grad, active, out=grad_up)
    grad_gate.copy_(torch.ops.aten.silu_backward(grad * up, gate))
    return out, active.mul_(up)


def _mix(base: Tensor, difference: Tensor, share: Tensor) -> tuple[Tensor, ...]:
    (public_gate, public_up), (gate, up) = base.chunk(2, dim=-1), (base + difference).chunk(2, dim=-1)
    public, own = F.silu(public_gate) * public_up, F.silu(gate) * up
    return torch.addcmul(public, own - public, share), own


def mix(base: Tensor, difference: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Activations of ``base`` and of ``base + difference``, both ``[n, 2I]``, mixed by ``share [n, 1]``; and the second alone."""
    mixed, own = _run(_mix, base, difference, share)
    return mixed, own


def _mix_backward(base: Tensor, difference: Tensor, grad_mixed: Tensor, grad_own: Tensor, share: Tensor) -> tuple[Tensor, ...]:
    (public_gate, public_up), (gate, up) = base.chunk(2, dim=-1), (base + difference).chunk(2, dim=-1)
    public_sigmoid, sigmoid = torch.sigmoid(public_gate), torch.sigmoid(gate)
    public_active, active = public_gate * public_sigmoid, gate * sigmoid
    toward_public, toward_own = grad_mixed * (1 - share), grad_own + grad_mixed * share
    of_gate, of_up = toward_own * up * (sigmoid + active * (1 - sigmoid)), toward_own * active
    of_public_gate = toward_public * public_up * (public_sigmoid + public_active * (1 - public_sigmoid))
    both = torch.cat((of_gate + of_public_gate, of_up + toward_public * public_active), dim=-1)
    own = active * up
    gap = (grad_mixed * (own - public_active * public_up)).sum(-1, keepdim=True, dtype=torch.float32)
    return torch.cat((of_gate, of_up), dim=-1), both, own, gap


def mix_backward(
    base: Tensor, difference: Tensor, grad_mixed: Tensor, grad_own: Tensor, share: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradient of :func:`mix` for those of both its results.

    Returns:
        The gradient to the difference ``[n, 2I]``, to the base ``[n, 2I]``, the expert's activation ``[n, I]``, and the gradient to the
        share ``[n, 1]`` in fp32.
    """
    if _mix_backward.__name__ in _compiled:
        of_expert, of_base, own, gap = _run(_mix_backward, base, difference, grad_mixed, grad_own, share)
        return of_expert, of_base, own, gap
    toward_own = grad_mixed * share
    of_base, public = activate_backward(base, grad_mixed - toward_own)
    of_expert, own = activate_backward(base + difference, toward_own.add_(grad_own))
    gap = public.neg_().add_(own).mul_(grad_mixed).sum(-1, keepdim=True, dtype=torch.float32)
    return of_expert, of_base.add_(of_expert), own, gap


def _norm_backward(x: Tensor, weight: Tensor, scale: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    unit = x.float() * scale
    inner = grad.float() * weight
    along = (inner * unit).mean(-1, keepdim=True)
    return (((inner - unit * along) * scale).to(x.dtype),)


def norm_backward(x: Tensor, weight: Tensor, scale: Tensor, grad: Tensor) -> Tensor:
    """Gradient of ``weight * x * scale`` with ``scale = 1 / rms(x)``, ``[..., H]``."""
    return _run(_norm_backward, x, weight, scale, grad)[0]


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    first, second = x.float().chunk(2, dim=-1)
    return (torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype),)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair ``(x[d], x[d + D/2])`` turned by the angle of ``cos`` and ``sin``, in fp32."""
    if _turn.__name__ in _compiled:
        return _run(_turn, x, cos, sin)[0]
    wide = x.float()
    half = x.shape[-1] // 2
    first, second = wide[..., :half], wide[..., half:]
    out = torch.empty_like(wide)
    torch.mul(first, cos, out=out[..., :half])
    torch.mul(second, cos, out=out[..., half:])
    out[..., :half].addcmul_(second, sin, value=-1)
    out[..., half:].addcmul_(first, sin)
    return out.to(x.dtype)


def _attention_backward(probabilities: Tensor, grad: Tensor, along: Tensor, scale: float) -> tuple[Tensor, ...]:
    return (probabilities * (grad - along) * scale,)


def attention_backward(probabilities: Tensor, grad: Tensor, along: Tensor, scale: float) -> Tensor:
    """Gradient of ``softmax(scale * scores)`` to the scores, ``[g, n, T]``; ``along [g, n, 1]`` is the sum of ``grad * probabilities``."""
    if _attention_backward.__name__ in _compiled:
        return _run(_attention_backward, probabilities, grad, along, scale)[0]
    return grad.sub_(along).mul_(probabilities).mul_(scale)
