"""The expert's optimizer: AdamW (arXiv 1711.05101) for everything, or Muon for its matrices and AdamW for its rows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from common.modeling.muon import muon_update
from owner_client.training.distributed import matching, whole
from owner_client.training.settings import TrainSettings

__all__ = ["ExpertOptimizer"]


class ExpertOptimizer:
    """Updates ``parameters`` from their gradients; its state can be saved and restored bit for bit.

    Args:
        parameters: what is trained, by name.
        settings: which optimizer, and its betas, momentum and decay.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: TrainSettings) -> None:
        self._settings = settings
        self._parameters = dict(parameters)
        matrices = [name for name, parameter in parameters.items() if settings.optimizer == "muon" and parameter.dim() == 2]
        self._stacks = _stacks(matrices, self._parameters)
        self._momenta = {name: torch.zeros_like(parameters[name]) for name in matrices}
        self._adam_names = [name for name in parameters if name not in self._momenta]
        self._adam: torch.optim.AdamW | None = None
        if self._adam_names:
            self._adam = torch.optim.AdamW(
                [parameters[name] for name in self._adam_names],
                betas=(settings.beta1, settings.beta2),
                weight_decay=settings.weight_decay,
                fused=True,
            )
            for name in self._adam_names:
                self._adam.state[parameters[name]] = _adam_start(parameters[name])

    def step(self, lr: float) -> None:
        """One update at learning rate ``lr``; the gradients are consumed."""
        if self._adam is not None:
            for group in self._adam.param_groups:
                group["lr"] = lr
            self._adam.step()
        for names in self._stacks:
            self._turn(names, lr)
        for parameter in self._parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def _turn(self, names: list[str], lr: float) -> None:
        """Muon's step with Nesterov momentum for matrices of one shape, taken together; sharded ones are gathered for it."""
        keep = self._settings.momentum
        ahead = []
        for name in names:
            gradient, momentum = self._parameters[name].grad, self._momenta[name]
            if gradient is not None:
                momentum.lerp_(gradient, 1 - keep)
                ahead.append(whole(gradient.lerp(momentum, keep)))
        update = muon_update(torch.stack(ahead), maps=_maps(names[0]))
        for name, change in zip(names, update, strict=True):
            parameter = self._parameters[name]
            parameter.mul_(1 - lr * self._settings.weight_decay).add_(matching(change.contiguous(), parameter), alpha=-lr)

    def state(self) -> dict[str, Tensor]:
        """The tensors, by name, that the next step depends on besides the parameters and the number of finished steps."""
        tensors = {f"momentum.{name}": momentum for name, momentum in self._momenta.items()}
        if self._adam is not None:
            for name in self._adam_names:
                state = self._adam.state[self._parameters[name]]
                tensors |= {f"{moment}.{name}": state[moment] for moment in ("exp_avg", "exp_avg_sq")}
        return tensors

    def restored(self, finished: int) -> None:
        """Note that ``finished`` steps are done, once the tensors of :meth:`state` have been filled from a checkpoint."""
        if self._adam is not None:
            for state in self._adam.state.values():
                state["step"].fill_(finished)


def _adam_start(parameter: Tensor) -> dict[str, Tensor]:
    """AdamW's state before its first step, made at once so that it can be saved and loaded at any time."""
    # The fused optimizer wants its step count where the parameter is.
    count = torch.zeros((), dtype=torch.float32, device=parameter.device)
    return {"step": count, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}


def _maps(name: str) -> int:
    """The gate and up projections are one parameter but two maps."""
    return 2 if name.endswith("gate_up.weight") else 1


def _stacks(names: list[str], parameters: Mapping[str, nn.Parameter]) -> list[list[str]]:
    """Names in groups of the same shape and kind, in order."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name in names:
        groups.setdefault((tuple(parameters[name].shape), _maps(name)), []).append(name)
    return list(groups.values())
