"""The anchor's optimizer: float32 master weights over a model in any dtype, AdamW (arXiv 1711.05101) and Muon for the layers' matrices.

A small model learns the same from fewer tokens by Muon (:mod:`common.modeling.muon`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from common.errors import FormatError
from common.modeling.muon import muon_update
from coordinator.compute.presets import AnchorSettings

__all__ = ["Optimizer"]

_MOMENTUM = 0.95
_SEPARATOR = "|"


class Optimizer:
    """Updates ``model`` from its gradients; all state is in float32 and can be saved and restored bit for bit.

    Args:
        model: a dense model whose parameters require gradients.
        settings: rates, betas, decay, clipping.
    """

    def __init__(self, model: nn.Module, settings: AnchorSettings) -> None:
        self._settings = settings
        self._live = dict(model.named_parameters())
        self._masters = {name: parameter.detach().float().clone() for name, parameter in self._live.items()}
        muon = [name for name in self._live if settings.matrix_lr and _is_inner_matrix(name, self._live[name])]
        self._stacks = _stacks(muon, self._masters)
        self._momenta = {name: torch.zeros_like(self._masters[name]) for name in muon}
        adam = [name for name in self._live if name not in self._momenta]
        decayed = [self._masters[name] for name in adam if _is_inner_matrix(name, self._live[name])]
        kept = [self._masters[name] for name in adam if not _is_inner_matrix(name, self._live[name])]
        groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": kept, "weight_decay": 0.0}]
        self._adam_names = adam
        # AdamW takes a group of nothing, but not nothing at all.
        groups = [group for group in groups if group["params"]] or groups[:1]
        self._adam = torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=1e-10, fused=True)

    def step(self, share: float) -> float:
        """One update at ``share`` of the peak learning rates; gradients are consumed.

        Returns:
            The gradients' norm before clipping; when it is not finite, nothing is updated.
        """
        gradients = {name: parameter.grad.float() for name, parameter in self._live.items() if parameter.grad is not None}
        norm = float(torch.linalg.vector_norm(torch.stack([gradient.norm() for gradient in gradients.values()])))
        if norm < float("inf"):
            scale = min(1.0, self._settings.clip / (norm + 1e-6))
            torch._foreach_mul_(list(gradients.values()), scale)
            self._update(gradients, share)
        for parameter in self._live.values():
            parameter.grad = None
        return norm

    def _update(self, gradients: Mapping[str, Tensor], share: float) -> None:
        for name in self._adam_names:
            self._masters[name].grad = gradients[name]
        for group in self._adam.param_groups:
            group["lr"] = share * self._settings.lr
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        for names in self._stacks:
            self._turn(names, gradients, share * self._settings.matrix_lr)
        with torch.no_grad():
            torch._foreach_copy_(list(self._live.values()), list(self._masters.values()))

    @torch.no_grad()
    def _turn(self, names: list[str], gradients: Mapping[str, Tensor], lr: float) -> None:
        """Muon's step for matrices of one shape, taken together."""
        momenta = [self._momenta[name] for name in names]
        fresh = [gradients[name] for name in names]
        torch._foreach_lerp_(momenta, fresh, 1 - _MOMENTUM)
        ahead = torch.stack([gradient.lerp(momentum, _MOMENTUM) for gradient, momentum in zip(fresh, momenta, strict=True)])
        # The gate and up projections are one parameter but two maps, so each half is turned by itself.
        update = muon_update(ahead, maps=2 if names[0].endswith("gate_up.weight") else 1)
        for name, change in zip(names, update, strict=True):
            self._masters[name].mul_(1 - lr * self._settings.weight_decay).add_(change, alpha=-lr)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        return {name: tensor.detach() for name, tensor in self._entries()}

    def _entries(self) -> Iterator[tuple[str, Tensor]]:
        for name, master in self._masters.items():
            yield f"weight{_SEPARATOR}{name}", master
        for name, momentum in self._momenta.items():
            yield f"momentum{_SEPARATOR}{name}", momentum
        for name in self._adam_names:
            for key, value in self._adam_state(self._masters[name]).items():
                yield f"{key}{_SEPARATOR}{name}", value

    def _adam_state(self, master: Tensor) -> dict[str, Tensor]:
        """AdamW's state of one weight, made empty before the first step as AdamW itself would."""
        state = self._adam.state[master]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(master), torch.zeros_like(master)
        return state

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Go back to a saved :meth:`state`.

        Raises:
            FormatError: it is of another model or of other settings.
        """
        entries = dict(self._entries())
        if entries.keys() != saved.keys() or any(entries[name].shape != saved[name].shape for name in entries):
            raise FormatError("The checkpoint is of another model or optimizer.")
        with torch.no_grad():
            for name, tensor in entries.items():
                tensor.copy_(saved[name])
            torch._foreach_copy_(list(self._live.values()), list(self._masters.values()))


def _is_inner_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.dim() == 2 and name.startswith("layers.")


def _stacks(names: list[str], masters: Mapping[str, Tensor]) -> list[list[str]]:
    """Names in groups of the same shape and kind, in order."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name in names:
        groups.setdefault((tuple(masters[name].shape), name.endswith("gate_up.weight")), []).append(name)
    return list(groups.values())
