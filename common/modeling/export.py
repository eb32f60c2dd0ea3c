"""Writing dense model folders that stock transformers loads (``Olmo2ForCausalLM``; the form is what its ``save_pretrained`` writes)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from common.errors import ArchitectureError
from common.files import atomic_folder, storage_errors
from common.formats.layout import TOKENIZER_FILES
from common.modeling.config import ModelConfig
from common.modeling.model import CausalLM
from common.modeling.names import slots

__all__ = ["dense_config", "dense_tensors", "save_dense"]


def dense_config(config: ModelConfig, dtype: torch.dtype) -> dict[str, object]:
    """The ``config.json`` of a dense model, every field written out because readers' defaults differ.

    ``rope_theta`` stands both at the top (transformers 4) and in ``rope_parameters`` (transformers 5).
    """
    return {
        "architectures": ["Olmo2ForCausalLM"],
        "model_type": "olmo2",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": str(dtype).removeprefix("torch."),
    }


def dense_tensors(model: CausalLM, *, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """All tensors of a dense model under their Hugging Face names, on the CPU.

    Raises:
        ArchitectureError: the model is not dense.
    """
    if model.kind != "dense":
        raise ArchitectureError("Only a dense model is written here; a mixture is assembled from its parts.")
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return {
        name: parameters[slot.parameter][slot.start : slot.start + slot.shape[0]].to(device="cpu", dtype=dtype).clone().contiguous()
        for name, slot in slots(model.config, "dense").items()
    }


def save_dense(
    model: CausalLM,
    folder: Path,
    *,
    tokenizer_files: Sequence[Path] | Path = (),
    dtype: torch.dtype = torch.float32,
    into: bool = False,
) -> None:
    """Write ``model`` as a folder that ``AutoModelForCausalLM.from_pretrained`` loads.

    Args:
        model: a dense model.
        folder: must not exist (it appears whole or not at all), unless ``into``.
        tokenizer_files: files to copy beside the weights, or a folder whose tokenizer files are copied.
        dtype: the weights are written in.
        into: write into the existing ``folder``, for a caller that publishes the folder itself.

    Raises:
        AlreadyExistsError: ``folder`` exists.
        ArchitectureError: the model is not dense.
        StorageError: the disk is full or not writable.
    """
    if into:
        _write(model, folder, _tokenizer_files(tokenizer_files), dtype)
        return
    with atomic_folder(folder) as aside:
        _write(model, aside, _tokenizer_files(tokenizer_files), dtype)


def _tokenizer_files(given: Sequence[Path] | Path) -> list[Path]:
    if isinstance(given, Path):
        return [given / name for name in TOKENIZER_FILES if (given / name).exists()]
    return list(given)


def _write(model: CausalLM, folder: Path, tokenizer_files: Sequence[Path], dtype: torch.dtype) -> None:
    config = model.config
    ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id}
    generation = {"_from_model_config": True, **{name: value for name, value in ids.items() if value is not None}}
    with storage_errors(f"the model in {folder.name}"):
        save_file(dense_tensors(model, dtype=dtype), folder / "model.safetensors", metadata={"format": "pt"})
        for name, content in (("config.json", dense_config(config, dtype)), ("generation_config.json", generation)):
            (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for path in tokenizer_files:
            shutil.copyfile(path, folder / path.name)
