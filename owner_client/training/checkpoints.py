"""Checkpoints of a run, each folder whole or absent, safetensors and JSON, never pickle.

``step-XXXXXXXX/`` holds parameters, optimizer and early stopping, ``best-XXXXXXXX/`` the parameters of the best measured step. One
process writes one ``state.safetensors``; several write their parts through ``torch.distributed.checkpoint``, and any number of
processes reads either.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.errors import DataError
from common.files import fsync_folder, fsync_tree, storage_errors
from owner_client.training.distributed import World
from owner_client.training.early_stopping import EarlyStopping
from owner_client.training.optimizer import ExpertOptimizer

__all__ = ["Checkpoints"]

_NAME = re.compile(r"(step|best)-([0-9]{8})")
_KEEP = 2
_STATE, _FACTS = "state.safetensors", "state.json"


class Checkpoints:
    """The checkpoints in ``folder`` of the live tensors of ``parameters`` and ``optimizer``; every process calls every method.

    Args:
        folder: made when needed.
        parameters: what is trained, by name.
        optimizer: its optimizer.
        early: kept in the checkpoints with them.
        world: the run's processes.
    """

    def __init__(
        self, folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: ExpertOptimizer, early: EarlyStopping, world: World
    ) -> None:
        self._folder = folder
        self._optimizer = optimizer
        self._early = early
        self._world = world
        self._weights = {f"param.{name}": parameter.detach() for name, parameter in parameters.items()}

    def save(self, step: int) -> None:
        """Write the state after ``step`` steps and remove all but the newest two, and best steps that no checkpoint needs.

        Raises:
            StorageError: the disk is full or not writable; earlier checkpoints stay.
        """
        facts = {"step": step, "early": self._early.facts(), "rng": torch.get_rng_state().numpy().tobytes().hex()}
        self._write(f"step-{step:08d}", self._weights | self._optimizer.state(), facts)
        if self._world.first:
            self._prune()
        self._world.wait()

    def save_best(self, step: int) -> None:
        """Keep the parameters of the best measured step.

        Raises:
            StorageError: the disk is full or not writable.
        """
        self._write(f"best-{step:08d}", self._weights, {"step": step})

    def resume(self) -> int:
        """Put the newest checkpoint's state into the live tensors, bit for bit; returns the finished steps, 0 without a checkpoint.

        Raises:
            DataError: the checkpoint is damaged or of another model.
        """
        found = _numbered(self._folder, "step")
        if not found:
            return 0
        path = found[-1][1]
        facts = self._read(path, self._weights | self._optimizer.state())
        try:
            step = int(facts["step"])
            self._early.restore(facts["early"])
            torch.set_rng_state(torch.frombuffer(bytearray.fromhex(facts["rng"]), dtype=torch.uint8))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise _damaged(path) from error
        self._optimizer.restored(step)
        return step

    def load_best(self) -> None:
        """Put the best measured step's parameters into the live ones.

        Raises:
            DataError: they are damaged or missing.
        """
        self._read(self._folder / f"best-{self._early.best_step:08d}", self._weights)

    def _write(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, object]) -> None:
        target, aside = self._folder / name, self._folder / f".{name}.partial"
        if self._world.first:
            with storage_errors("a checkpoint"):
                self._folder.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir()
        self._world.wait()
        with storage_errors("a checkpoint"):
            if self._world.size == 1:
                save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, aside / _STATE)
            else:
                _save_shared(aside, tensors)
            if self._world.first:
                (aside / _FACTS).write_text(json.dumps({"schema": 2, **facts}), encoding="utf-8")
                fsync_tree(aside)
                shutil.rmtree(target, ignore_errors=True)
                aside.rename(target)
                fsync_folder(self._folder)
        self._world.wait()

    def _read(self, path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Fill ``tensors`` from the folder ``path``; returns its facts."""
        try:
            facts = json.loads((path / _FACTS).read_bytes())
            if self._world.size == 1 and (path / _STATE).exists():
                _load_whole(path / _STATE, tensors)
            else:
                _load_shared(path, tensors, single=self._world.size == 1)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise _damaged(path) from error
        if not isinstance(facts, dict):
            raise _damaged(path)
        return facts

    def _prune(self) -> None:
        steps = _numbered(self._folder, "step")
        for _, old in steps[:-_KEEP]:
            shutil.rmtree(old, ignore_errors=True)
        needed = {self._early.best_step, *(_best_step(path) for _, path in steps[-_KEEP:])}
        for number, path in _numbered(self._folder, "best"):
            if number not in needed:
                shutil.rmtree(path, ignore_errors=True)


def _numbered(folder: Path, kind: str) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match.group(2)), path) for match, path in found if match.group(1) == kind)


def _best_step(path: Path) -> int:
    try:
        return int(json.loads((path / _FACTS).read_bytes())["early"]["best_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _damaged(path: Path) -> DataError:
    return DataError(f"The checkpoint {path.name} is damaged or of another run; remove it and run the command again.")


def _load_whole(path: Path, tensors: Mapping[str, Tensor]) -> None:
    saved = load_file(path)
    for name, tensor in tensors.items():
        value = saved[name]
        if value.shape != tensor.shape or value.dtype != tensor.dtype:
            raise ValueError(name)
        tensor.copy_(value)


def _save_shared(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Every process writes its parts of the sharded ``tensors`` as a safetensors file."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def _load_shared(folder: Path, tensors: Mapping[str, Tensor], *, single: bool) -> None:
    """Every process fills its parts of ``tensors`` from the files of however many processes wrote them."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=single)
    except CheckpointException as error:
        raise ValueError(folder.name) from error
