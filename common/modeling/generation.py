"""Sampling text from a model, token by token with a cache; temperature and nucleus sampling as commonly defined (arXiv 1904.09751)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from common.errors import UsageError
from common.modeling.attention import KVCache
from common.modeling.model import CausalLM

__all__ = ["generate"]


def generate(
    model: CausalLM,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    eos_id: int | None = None,
    allowed: Tensor | None = None,
) -> Iterator[int]:
    """Yield the tokens that follow ``prompt_ids``, one at a time; the same for the same ``seed`` on one machine.

    Args:
        model: any kind of model.
        prompt_ids: at least one token.
        max_new_tokens: at most this many; fewer at the end token or when the model's positions are used up.
        temperature: 0 takes the likeliest token, larger is more random.
        top_p: draw only among the likeliest tokens that together have this probability.
        seed: of the draw.
        eos_id: ends the text and is not yielded; by default the model's own.
        allowed: experts of a mixture that take part, ``[N]`` bool.

    Raises:
        UsageError: an empty or too long prompt, a token that the model does not know, or an argument out of range.
    """
    _check(model, prompt_ids, max_new_tokens, temperature, top_p)
    return _steps(model, list(prompt_ids), max_new_tokens, temperature, top_p, seed, eos_id, allowed)


def _check(model: CausalLM, prompt_ids: Sequence[int], max_new_tokens: int, temperature: float, top_p: float) -> None:
    if not prompt_ids:
        raise UsageError("The prompt has no token; give some text to go on from.")
    if len(prompt_ids) > model.config.max_position_embeddings:
        raise UsageError(f"The prompt has {len(prompt_ids)} tokens; the model reads at most {model.config.max_position_embeddings}.")
    if not all(0 <= token < model.config.vocab_size for token in prompt_ids):
        raise UsageError("The prompt has a token that the model does not know; the tokenizer is of another model.")
    if max_new_tokens < 0 or temperature < 0 or not 0 < top_p <= 1:
        raise UsageError("The number of new tokens and the temperature must not be negative, and top-p lies between 0 and 1.")


@torch.no_grad()
def _steps(
    model: CausalLM,
    prompt: list[int],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    eos_id: int | None,
    allowed: Tensor | None,
) -> Iterator[int]:
    weight = model.embed_tokens.weight
    end = model.config.eos_token_id if eos_id is None else eos_id
    capacity = min(model.config.max_position_embeddings, len(prompt) + max_new_tokens)
    cache = KVCache(model.config, batch=1, capacity=capacity, dtype=weight.dtype, device=weight.device)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor([prompt], device=weight.device)
    for _ in range(min(max_new_tokens, capacity - len(prompt) + 1)):
        states = model.hidden(tokens, cache=cache, allowed=allowed)[:, -1]
        logits = torch.nn.functional.linear(states, model.head_weight)[0]
        token = _draw(logits.float().cpu(), temperature, top_p, generator)
        if token == end:
            return
        yield token
        if cache.length >= capacity:
            return
        tokens = torch.tensor([[token]], device=weight.device)


def _draw(logits_V: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    probabilities, order = torch.softmax(logits_V / temperature, dim=-1).sort(descending=True)
    kept = int((probabilities.cumsum(0) - probabilities < top_p).sum())
    return int(order[torch.multinomial(probabilities[:kept], 1, generator=generator)])
