"""Several processes on one run: FSDP2 (``torch.distributed.fsdp.fully_shard``) over every block, and the few collectives of the loop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from common.errors import LostProcessError, MissingExtraError, UsageError
from common.modeling.model import CausalLM
from owner_client.training.launch import environment_world

__all__ = ["World", "gather_expert", "joined", "local", "lost_processes", "matching", "reshard", "shard", "whole"]

_PATIENCE = timedelta(minutes=10)  # of a collective, before the other processes are given up
_CUT = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "Socket Timeout", "recv() failed")
_CUT_ERRORS = (dist.DistBackendError, dist.DistNetworkError)


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run; by default this one alone."""

    rank: int = 0
    """Number of this process."""
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where this process computes."""

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes, the same on each."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def largest(self, values: Sequence[float]) -> list[float]:
        """Maxima over all processes."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def _reduced(self, values: Sequence[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=operation)
        return [float(value) for value in tensor.tolist()]

    def wait(self) -> None:
        """Go on when every process is here."""
        self.total([0.0])


@contextlib.contextmanager
def joined(device_type: str) -> Iterator[World]:
    """The world that the environment (``torchrun``, or our own launcher) names, joined until the block ends; without one, this process.

    Raises:
        LostProcessError: another process could not be reached, or went away within the block.
        UsageError: more processes on this machine than CUDA devices.
    """
    named = environment_world()
    if named is None:
        yield World(device=torch.device(device_type))
        return
    device = torch.device(device_type)
    if device_type == "cuda":
        if named.local_rank >= torch.cuda.device_count():
            raise UsageError(f"There are {torch.cuda.device_count()} CUDA devices, fewer than the processes on this machine.")
        device = torch.device("cuda", named.local_rank)
        torch.cuda.set_device(device)
    with lost_processes():
        dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=_PATIENCE)
        try:
            yield World(named.rank, named.size, device)
            dist.barrier()
        finally:
            dist.destroy_process_group()


@contextlib.contextmanager
def lost_processes() -> Iterator[None]:
    """Within the block a broken connection between the processes is a :class:`LostProcessError`."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, _CUT_ERRORS) or any(sign in str(error) for sign in _CUT):
            raise LostProcessError("Another process of this run ended or does not answer.") from error
        raise


def shard(model: CausalLM, world: World) -> None:
    """Divide every block's tensors and the rest of ``model``, trained and frozen, over the processes; no change for a single one.

    Every tensor is gathered in its own type, so that the arithmetic is that of one process: float32 for the expert, the anchor's
    type for the frozen part. Gradients are summed in float32, and the losses of all processes add up to that of the whole step.

    Raises:
        MissingExtraError: this torch has no FSDP2.
    """
    if world.size == 1:
        return
    try:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
    except ImportError as error:
        raise MissingExtraError("Training with several processes needs torch 2.8 or newer.") from error
    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for block in model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for method in ("loss", "token_losses"):
        register_fsdp_forward_method(model, method)


def reshard(model: nn.Module) -> None:
    """Give up the gathered tensors that FSDP2 keeps after a forward pass without a backward pass."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that may be sharded."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; every process must call this."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def matching(full: Tensor, like: Tensor) -> Tensor:
    """``full``, which every process holds alike, divided as ``like`` is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return full
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)


def gather_expert(model: CausalLM, trained: Mapping[str, nn.Parameter], world: World) -> None:
    """Put the whole trained tensors and the rows into the first process's ``model``, on the CPU, for writing.

    The model computes no more afterwards.
    """
    if world.size == 1:
        return
    rows = {name: parameter for name, parameter in model.named_parameters() if name.endswith(".row")}
    for name, parameter in (rows | dict(trained)).items():
        full = whole(parameter.detach())
        if world.first:
            module_name, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(module_name), attribute, nn.Parameter(full.cpu(), requires_grad=False))
