"""Text from a model folder, with experts left out by name (names are those in the folder's ``manifest.json``)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from common.errors import LayoutError, NotFoundError, UsageError
from common.modeling.generation import generate as sample
from common.modeling.loading import load_model
from common.modeling.model import CausalLM
from common.textdata.tokens import load_tokenizer

__all__ = ["PUBLIC_EXPERT", "allowed_experts", "expert_names", "generate_text"]

PUBLIC_EXPERT = "public"  # the anchor's own FFN, slot 0, which no manifest lists
_UNFINISHED = "\ufffd"  # what a character whose bytes are not all there decodes to


def expert_names(folder: Path, num_experts: int) -> list[str]:
    """A name for every slot of the mixture in ``folder``: ``public`` first, then those of ``manifest.json``, else ``expert-N``.

    Raises:
        LayoutError: ``manifest.json`` is not JSON or its list of experts does not fit the model.
    """
    names = [PUBLIC_EXPERT, *[f"expert-{slot}" for slot in range(1, num_experts)]]
    path = folder / "manifest.json"
    if not path.exists():
        return names
    try:
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise LayoutError(f"The model's manifest.json cannot be read; its experts' names are not known: {folder}.") from error
    listed = manifest.get("experts") if isinstance(manifest, dict) else None
    if not isinstance(listed, list):
        return names
    for entry in listed:
        slot, name = (entry.get("slot"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if not isinstance(slot, int) or not isinstance(name, str) or not 0 < slot < num_experts:
            raise LayoutError("manifest.json lists an expert that the model has no place for.")
        names[slot] = name
    return names


def allowed_experts(names: Sequence[str], exclude: Sequence[str]) -> torch.Tensor | None:
    """One flag per expert, ``[N]`` bool, false for the excluded; None when nothing is excluded.

    Raises:
        NotFoundError: a name is of no expert; the message lists those there are.
        UsageError: the public expert is named.
    """
    if not exclude:
        return None
    if PUBLIC_EXPERT in exclude:
        raise UsageError("The public expert cannot be excluded: it is the anchor's own feed-forward network.")
    unknown = [name for name in exclude if name not in names]
    if unknown:
        known = ", ".join(names[1:]) or "none"
        raise NotFoundError(f"The model has no expert named {unknown[0]!r}. Its experts: {known}.")
    return torch.tensor([name not in exclude for name in names])


def generate_text(
    folder: Path,
    prompt: str,
    *,
    exclude: Sequence[str] = (),
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Iterator[str]:
    """Yield the text that follows ``prompt``, piece by piece, each of whole characters; the pieces do not include the prompt.

    Args:
        folder: a dense model or a mixture with its tokenizer.
        prompt: text to go on from; empty starts a new document.
        exclude: names of experts that take no part, as if the mixture had been assembled without them.
        max_new_tokens: at most so many.
        temperature: 0 takes the likeliest token.
        top_p: nucleus of the draw.
        seed: of the draw.
        device: to compute on.
        dtype: to compute in.

    Raises:
        NotFoundError, UsageError: an expert that is not there, experts excluded from a dense model, or an argument out of range.
        ArchitectureError, LayoutError, SafetensorsError: the model cannot be loaded.
    """
    model = load_model(folder, dtype=dtype, device=device)
    tokenizer = load_tokenizer(folder)
    allowed = _allowed(model, folder, exclude)
    ids = tokenizer.encode(prompt) or [tokenizer.eos_id]
    tokens = sample(
        model,
        ids,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        eos_id=tokenizer.eos_id,
        allowed=allowed,
    )

    def pieces() -> Iterator[str]:
        """Decode everything so far each time: a token may hold a part of a character only."""
        new: list[int] = []
        shown = 0
        for token in tokens:
            new.append(token)
            text = tokenizer.decode(new)
            if not text.endswith(_UNFINISHED) and len(text) > shown:
                yield text[shown:]
                shown = len(text)
        if new and len(rest := tokenizer.decode(new)) > shown:
            yield rest[shown:]

    return pieces()


def _allowed(model: CausalLM, folder: Path, exclude: Sequence[str]) -> torch.Tensor | None:
    if exclude and model.kind != "mixture":
        raise UsageError("The model is dense: it has no experts to exclude.")
    return allowed_experts(expert_names(folder, model.config.num_experts), exclude)
