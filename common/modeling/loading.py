"""Reading model folders (Hugging Face ``Olmo2ForCausalLM`` and ``FlexOlmoForCausalLM``) and an anchor's router statistics; no pickle."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from common.errors import ArchitectureError, LayoutError, SafetensorsError, TemplateError, UsageError
from common.formats.layout import (
    INDEX_NAME,
    ROUTER_NAME,
    dense_ffn_name,
    factor_names,
    input_mean_name,
    input_second_moment_name,
    router_row_name,
)
from common.modeling.config import ModelConfig
from common.modeling.feedforward import ExpertPair, LowRankPair
from common.modeling.model import CausalLM, Kind
from common.modeling.names import Slot, factor_slots, ffn_slots, slots

__all__ = [
    "RouterStats",
    "checkpoint_dtype",
    "expert_pairs",
    "expert_tensors",
    "load_expert",
    "load_model",
    "load_pair",
    "load_router_stats",
    "read_config",
    "router_tensors",
]

_SINGLE = "model.safetensors"
_JSON_LIMIT = 64 << 20  # bytes; the index of a checkpoint of a million tensors
_PICKLES = ("*.bin", "*.pt", "*.pth")


@dataclass(frozen=True, slots=True)
class RouterStats:
    """Moments of the anchor's public router inputs, one entry per layer, fp32."""

    mean: list[Tensor]
    """``E[x]``, ``[H]``."""
    second: list[Tensor]
    """``E[x x^T]``, ``[H, H]``, or its diagonal ``[H]`` for wide models."""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise LayoutError(f"{path.name} is larger than {_JSON_LIMIT >> 20} MiB; it is not a model's file.")
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ArchitectureError(f"{path.parent} has no {path.name}; it is not a Hugging Face model folder.") from error
    except OSError as error:
        raise LayoutError(f"{path.name} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise LayoutError(f"{path.name} is not valid JSON.") from error
    if not isinstance(value, dict):
        raise LayoutError(f"{path.name} is not a JSON object.")
    return value


def read_config(folder: Path) -> ModelConfig:
    """Sizes of the model in ``folder``, from its ``config.json``.

    Raises:
        ArchitectureError: no such file, or an architecture or feature that is not supported.
        LayoutError: the file is not JSON.
    """
    return ModelConfig.from_hf(_read_json(folder / "config.json"))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An open safetensors file; every failure to read it is a :class:`SafetensorsError`."""
    try:
        with safe_open(path, framework="pt") as stream:
            yield stream
    except SafetensorError as error:
        raise SafetensorsError(f"{path.name} is not a well-formed safetensors file ({error}).") from error
    except OSError as error:
        raise SafetensorsError(f"{path.name} cannot be read: {error.strerror or error}.") from error


def _weight_files(folder: Path) -> dict[Path, list[str] | None]:
    """The checkpoint's files and, with an index, the tensors that it assigns to each."""
    if (folder / INDEX_NAME).exists():
        weight_map = _read_json(folder / INDEX_NAME).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise LayoutError(f"{INDEX_NAME} has no weight_map.")
        files: dict[Path, list[str] | None] = {}
        for tensor, file in weight_map.items():
            if not isinstance(file, str) or Path(file).is_absolute() or ".." in Path(file).parts or not file.endswith(".safetensors"):
                raise LayoutError(f"{INDEX_NAME} points {tensor} at something that is not a safetensors file of this folder.")
            listed = files.setdefault(folder / file, [])
            if listed is not None:
                listed.append(tensor)
        return files
    if (folder / _SINGLE).exists():
        return {folder / _SINGLE: None}
    if any(True for pattern in _PICKLES for _ in folder.glob(pattern)):
        raise ArchitectureError(f"{folder} holds its weights as pickle files, which are never read. Convert them to safetensors first.")
    raise ArchitectureError(f"{folder} has neither {_SINGLE} nor {INDEX_NAME}; it is not a model folder with safetensors weights.")


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the checkpoint once, file by file."""
    for path, listed in _weight_files(folder).items():
        with _opened(path) as stream:
            held = list(stream.keys())
            if listed is not None and sorted(held) != sorted(listed):
                odd = sorted(set(held) ^ set(listed))[0]
                raise LayoutError(f"{path.name} and {INDEX_NAME} disagree about {odd}.")
            for name in held:
                yield name, stream.get_tensor(name)


def checkpoint_dtype(folder: Path) -> torch.dtype:
    """The dtype that the checkpoint's embedding is stored in; experts and rows are stored in the same.

    Raises:
        ArchitectureError: there is no embedding, or it is not of a floating type.
        SafetensorsError: the file cannot be read.
    """
    for path, listed in _weight_files(folder).items():
        if listed is not None and "model.embed_tokens.weight" not in listed:
            continue
        with _opened(path) as stream:
            if "model.embed_tokens.weight" in stream.keys():  # noqa: SIM118 - safe_open is no mapping
                dtype: torch.dtype = stream.get_slice("model.embed_tokens.weight")[:1].dtype
                if dtype.is_floating_point:
                    return dtype
    raise ArchitectureError(f"{folder} has no embedding of a floating type.")


def _fill(parameters: Mapping[str, nn.Parameter], name: str, tensor: Tensor, slot: Slot) -> None:
    if tuple(tensor.shape) != slot.shape:
        raise ArchitectureError(f"Tensor {name} has shape {list(tensor.shape)}; the configuration says {list(slot.shape)}.")
    if not tensor.dtype.is_floating_point:
        raise ArchitectureError(f"Tensor {name} is of type {tensor.dtype}; only floating types are supported.")
    with torch.no_grad():
        parameters[slot.parameter][slot.start : slot.start + slot.shape[0]].copy_(tensor)


def _fill_all(model: CausalLM, folder: Path) -> None:
    wanted = slots(model.config, model.kind)
    parameters = dict(model.named_parameters())
    for name, tensor in _tensors(folder):
        slot = wanted.pop(name, None)
        if slot is None:
            raise ArchitectureError(f"{folder} holds a tensor that the configuration has no place for, or holds it twice: {name}.")
        _fill(parameters, name, tensor, slot)
    if wanted:
        raise ArchitectureError(f"{folder} lacks {len(wanted)} tensors, the first is {next(iter(wanted))}.")


def _empty(config: ModelConfig, kind: Kind, dtype: torch.dtype, device: torch.device | str, rank: int | None = None) -> CausalLM:
    """A model whose parameters have room but no values yet."""
    with torch.device("meta"):
        model = CausalLM(config, kind=kind, rank=rank)
    return model.to(dtype).to_empty(device=device)


def load_model(folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> CausalLM:
    """The model in a Hugging Face folder: dense for ``Olmo2ForCausalLM``, a mixture for ``FlexOlmoForCausalLM``; in evaluation mode.

    Every tensor must be there exactly once with the right shape, and no other.

    Raises:
        ArchitectureError: another architecture, pickled weights, or tensors that do not fit the configuration.
        LayoutError: the index is malformed or disagrees with the files.
        SafetensorsError: a file cannot be read.
    """
    config = read_config(folder)
    kind: Kind = "mixture" if _is_mixture(folder) else "dense"
    model = _empty(config, kind, dtype, device)
    _fill_all(model, folder)
    return model.eval().requires_grad_(False)


def _is_mixture(folder: Path) -> bool:
    """A FlexOlmo checkpoint of one expert is a mixture too: its tensors have the mixture's names."""
    raw = _read_json(folder / "config.json")
    return "flex" in str(raw.get("architectures") or raw.get("model_type")).lower()


def load_pair(
    folder: Path,
    *,
    expert: Mapping[str, Tensor] | None = None,
    rows_LH: Tensor | None = None,
    rank: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> CausalLM:
    """The anchor in ``folder`` with an expert pair in every layer; only the expert and its rows require gradients.

    The expert and rows are fp32 whatever ``dtype`` the frozen part has.

    Args:
        folder: a dense ``Olmo2ForCausalLM`` folder.
        expert: the expert's tensors under their names in a package; without it the expert starts as the public FFN.
        rows_LH: router rows, one per layer, ``[L, H]``; zeros without it.
        rank: of the expert's differences to the public FFN; None means a full expert, or the rank of the factors in ``expert``.
        seed: of the factors of a low-rank expert that starts as the public FFN.
        dtype: of everything frozen.
        device: of everything.

    Raises:
        ArchitectureError, LayoutError, SafetensorsError: as :func:`load_model`; also when the folder is a mixture.
        TemplateError: ``expert`` or ``rows_LH`` has another name or shape than the anchor's.
        UsageError: the rank is less than 1, or more than the anchor's matrices have.
    """
    config = read_config(folder)
    if _is_mixture(folder):
        raise ArchitectureError(f"{folder} is a mixture; an expert is trained against a dense anchor.")
    rank = _rank_of(expert) if rank is None and expert is not None else rank
    if rank is not None and not 1 <= rank <= min(config.hidden_size, config.intermediate_size):
        raise UsageError(f"The rank must be between 1 and {min(config.hidden_size, config.intermediate_size)} for this anchor, not {rank}.")
    model = _empty(config, "pair", dtype, device, rank)
    _fill_all(model, folder)
    model.requires_grad_(False)
    for layer, pair in enumerate(expert_pairs(model)):
        pair.expert.to(torch.float32)
        if isinstance(pair, ExpertPair):
            pair.expert.load_state_dict(pair.public.state_dict())
        pair.row = nn.Parameter(torch.zeros(config.hidden_size, dtype=torch.float32, device=device))
        if rows_LH is not None:
            if tuple(rows_LH.shape) != (config.num_layers, config.hidden_size):
                raise TemplateError(f"The router rows have shape {list(rows_LH.shape)}, not one row of the hidden size per layer.")
            pair.row.data.copy_(rows_LH[layer])
        pair.expert.requires_grad_(True)
    if expert is not None:
        _fill_expert(model, expert)
    elif rank is not None:
        model.init_low_rank(seed)
    return model.eval()


def _rank_of(expert: Mapping[str, Tensor]) -> int | None:
    """The rank of an expert given by factors, None if it has none; whether all factors agree is seen when they are filled in."""
    first = next((name for name in factor_names(dense_ffn_name(0, "gate_proj")) if name in expert), None)
    return None if first is None else min(expert[first].shape, default=0)


def _expert_slots(model: CausalLM, layer: int) -> dict[str, Slot]:
    module = f"layers.{layer}.mlp.expert"
    return ffn_slots(model.config, layer, module) if model.rank is None else factor_slots(model.config, layer, module, model.rank)


def _fill_expert(model: CausalLM, expert: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    wanted: dict[str, Slot] = {}
    for layer in range(model.config.num_layers):
        wanted |= _expert_slots(model, layer)
    odd = sorted(set(wanted) ^ set(expert))
    if odd:
        raise TemplateError(f"The expert's tensors are not exactly the anchor's; {odd[0]} is missing or does not belong.")
    for name, slot in wanted.items():
        if tuple(expert[name].shape) != slot.shape:
            raise TemplateError(f"Tensor {name} has shape {list(expert[name].shape)} where {list(slot.shape)} belongs.")
        _fill(parameters, name, expert[name], slot)


def load_expert(folder: Path) -> tuple[dict[str, Tensor], Tensor]:
    """The expert of a package folder, unverified: its FFN tensors or factors under their names there, and its rows ``[L, H]``.

    Raises:
        LayoutError: there are no part files, or two hold the same tensor.
        SafetensorsError: a file cannot be read.
        TemplateError: the rows are not one of the same width for every layer.
    """
    parts = sorted(folder.glob("part-*.safetensors"))
    if not parts or not (folder / ROUTER_NAME).exists():
        raise LayoutError(f"{folder} is not an expert package: it lacks its part files or {ROUTER_NAME}.")
    tensors: dict[str, Tensor] = {}
    for part in parts:
        with _opened(part) as stream:
            for name in stream.keys():  # noqa: SIM118 - safe_open is no mapping
                if name in tensors:
                    raise LayoutError(f"{part.name} holds {name}, which an earlier part holds too.")
                tensors[name] = stream.get_tensor(name)
    with _opened(folder / ROUTER_NAME) as stream:
        rows = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - safe_open is no mapping
    names = [router_row_name(layer) for layer in range(len(rows))]
    if not rows or set(names) != set(rows) or len({tuple(row.shape) for row in rows.values()}) != 1 or rows[names[0]].shape[:-1] != (1,):
        raise TemplateError(f"{ROUTER_NAME} does not hold one row of one width for every layer.")
    return tensors, torch.cat([rows[name] for name in names])


def expert_pairs(model: CausalLM) -> list[ExpertPair | LowRankPair]:
    """The pair of every layer, in order.

    Raises:
        ArchitectureError: the model is not one of pairs.
    """
    pairs = [block.mlp for block in model.layers if isinstance(block.mlp, ExpertPair | LowRankPair)]
    if not pairs:
        raise ArchitectureError("The model has no expert pair.")
    return pairs


def expert_tensors(model: CausalLM, *, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The pair's expert under its names in a package, in layer order, on the CPU.

    Of a full expert they are ``model.layers.{l}.mlp.{gate,up,down}_proj.weight``, of a low-rank one ``....lora_A.weight`` and
    ``....lora_B.weight`` of each.

    Args:
        model: a model of pairs.
        dtype: of the result; by default as trained.
    """
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    for layer in range(len(expert_pairs(model))):
        for name, slot in _expert_slots(model, layer).items():
            rows = parameters[slot.parameter][slot.start : slot.start + slot.shape[0]]
            tensors[name] = rows.to(device="cpu", dtype=dtype or rows.dtype).clone().contiguous()
    return tensors


def router_tensors(model: CausalLM, *, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The pair's router rows, ``model.layers.{l}.mlp.gate.weight`` ``[1, H]``, on the CPU; ``dtype`` as in :func:`expert_tensors`."""
    return {
        router_row_name(layer): pair.row.detach()[None].to(device="cpu", dtype=dtype or pair.row.dtype).clone()
        for layer, pair in enumerate(expert_pairs(model))
    }


def load_router_stats(folder: Path) -> RouterStats:
    """The moments in the anchor's ``router.safetensors``.

    Raises:
        LayoutError: the file is missing, or lacks a layer's moments, or has them in another shape.
        SafetensorsError: the file cannot be read.
    """
    config = read_config(folder)
    path = folder / ROUTER_NAME
    if not path.exists():
        raise LayoutError(f"{folder} has no {ROUTER_NAME}; it is not a published anchor.")
    mean, second = [], []
    with _opened(path) as stream:
        held = set(stream.keys())
        for layer in range(config.num_layers):
            names = (input_mean_name(layer), input_second_moment_name(layer))
            if not held.issuperset(names):
                raise LayoutError(f"{ROUTER_NAME} lacks the moments of layer {layer}.")
            first_moment, second_moment = (stream.get_tensor(name).float() for name in names)
            square = (config.hidden_size, config.hidden_size)
            if first_moment.shape != square[:1] or tuple(second_moment.shape) not in (square, square[:1]):
                raise LayoutError(f"{ROUTER_NAME} has moments of the wrong shape in layer {layer}.")
            if not (torch.isfinite(first_moment).all() and torch.isfinite(second_moment).all()):
                raise LayoutError(f"{ROUTER_NAME} has moments that are not finite in layer {layer}.")
            mean.append(first_moment)
            second.append(second_moment)
    return RouterStats(mean, second)
