"""What the model promises beside the oracle: fresh pairs, excluded experts, packed documents, caches, losses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from common.errors import UsageError
from common.modeling import model as model_module
from common.modeling.attention import KVCache
from common.modeling.config import ModelConfig
from common.modeling.generation import generate
from common.modeling.loading import expert_pairs, load_model, load_pair
from common.modeling.model import CausalLM, Taps

Make = Callable[..., tuple[Any, Path]]
_CONFIG = ModelConfig(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=40,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    max_position_embeddings=64,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
)


def _mixture(experts: int, top_k: int) -> CausalLM:
    model = CausalLM(replace(_CONFIG, num_experts=experts, num_experts_per_tok=top_k))
    model.init_weights(1, std=0.2)
    return model.eval()


def _without(model: CausalLM, kept: list[int]) -> CausalLM:
    """The mixture with only the experts ``kept``, as it would be assembled."""
    smaller = _mixture(len(kept), min(len(kept), model.config.num_experts_per_tok)) if len(kept) > 1 else None
    config = replace(model.config, num_experts=len(kept), num_experts_per_tok=min(len(kept), model.config.num_experts_per_tok))
    smaller = CausalLM(config, kind="mixture").eval()
    state = model.state_dict()
    wanted = {}
    for name in smaller.state_dict():
        if ".experts." in name:
            before, _, after = name.partition(".experts.")
            number, _, rest = after.partition(".")
            wanted[name] = state[f"{before}.experts.{kept[int(number)]}.{rest}"]
        else:
            wanted[name] = state[name][kept] if name.endswith("mlp.rows") else state[name]
    smaller.load_state_dict(wanted)
    return smaller


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fresh_pair_is_the_anchor_bit_for_bit(stock_dense: Make, tokens: torch.Tensor, dtype: torch.dtype) -> None:
    _, folder = stock_dense(num_key_value_heads=2)
    anchor = load_model(folder, dtype=dtype)
    assert torch.equal(load_pair(folder, dtype=dtype)(tokens), anchor(tokens))
    rows = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
    assert torch.equal(load_pair(folder, dtype=dtype, rows_LH=rows)(tokens), anchor(tokens))
    with torch.no_grad():
        expected = anchor.loss(tokens, tokens)
    torch.testing.assert_close(load_pair(folder, dtype=dtype, rows_LH=rows).loss(tokens, tokens).detach(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fresh_low_rank_pair_is_the_anchor_bit_for_bit(tokens: torch.Tensor, dtype: torch.dtype) -> None:
    anchor, pair = CausalLM(_CONFIG).to(dtype), CausalLM(_CONFIG, kind="pair", rank=3).to(dtype)
    anchor.init_weights(0, std=0.2)
    pair.load_state_dict(_as_public(anchor.state_dict()), strict=False)
    pair.init_low_rank(1)
    for block in pair.layers:
        torch.nn.init.normal_(block.mlp.row)
        assert not block.mlp.expert.down_proj_b.any()
        assert block.mlp.expert.down_proj_a.any()
    with torch.no_grad():
        assert torch.equal(pair(tokens), anchor(tokens))
        pair.layers[1].mlp.expert.up_proj_b += 0.1
        assert not torch.equal(pair(tokens), anchor(tokens))


def _as_public(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace(".mlp.", ".mlp.public."): value for name, value in state.items()}


def test_impossible_ranks() -> None:
    for kind, rank in (("pair", 0), ("dense", 2), ("mixture", 2)):
        with pytest.raises(UsageError):
            CausalLM(_CONFIG, kind=kind, rank=rank)
    with pytest.raises(UsageError):
        CausalLM(_CONFIG, kind="pair").init_low_rank(0)


def test_only_expert_and_row_require_gradients(stock_dense: Make) -> None:
    pair = load_pair(stock_dense()[1], dtype=torch.bfloat16)
    trainable = {name for name, parameter in pair.named_parameters() if parameter.requires_grad}
    assert trainable == {
        f"layers.{layer}.mlp.{name}" for layer in range(3) for name in ("expert.gate_up.weight", "expert.down.weight", "row")
    }
    assert all(parameter.dtype == torch.float32 for parameter in pair.parameters() if parameter.requires_grad)
    assert all(parameter.dtype == torch.bfloat16 for parameter in pair.parameters() if not parameter.requires_grad)


@pytest.mark.parametrize("top_k", [1, 2, 3, 5])
@pytest.mark.parametrize("kept", [[0], [0, 2], [0, 1, 3], [0, 1, 2, 4]])
def test_excluding_is_the_checkpoint_without(tokens: torch.Tensor, top_k: int, kept: list[int]) -> None:
    model = _mixture(5, top_k)
    allowed = torch.zeros(5, dtype=torch.bool)
    allowed[kept] = True
    with torch.no_grad():
        everything, expected = model(tokens), _without(model, kept)(tokens)
        assert (model(tokens, allowed=allowed) - expected).abs().max() < 1e-5
        model.allowed = allowed
        assert (model(tokens) - expected).abs().max() < 1e-5
        assert (everything - expected).abs().max() > 1e-2


def test_impossible_exclusions() -> None:
    model = _mixture(3, 2)
    for flags in ([False, False, False], [False, True, True], [True, True]):
        with pytest.raises(UsageError):
            model.allowed = torch.tensor(flags)
    with pytest.raises(UsageError):
        CausalLM(_CONFIG).allowed = torch.tensor([True])


def test_packed_documents_are_separate_documents() -> None:
    model = CausalLM(_CONFIG)
    model.init_weights(0, std=0.2)
    first, second = torch.randint(0, 97, (1, 9)), torch.randint(0, 97, (1, 14))
    segments = torch.tensor([[0] * 9 + [1] * 14])
    with torch.no_grad():
        packed = model(torch.cat((first, second), dim=1), segments_BT=segments)
        torch.testing.assert_close(packed[:, :9], model(first), atol=1e-5, rtol=0)
        torch.testing.assert_close(packed[:, 9:], model(second), atol=1e-5, rtol=0)
        assert (model(torch.cat((first, second), dim=1))[:, 9:] - model(second)).abs().max() > 1e-2


def test_cache_gives_the_same_logits() -> None:
    model = _mixture(3, 2)
    tokens = torch.randint(0, 97, (2, 12))
    cache = KVCache(model.config, batch=2, capacity=12, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        pieces = [model(piece, cache=cache) for piece in (tokens[:, :5], tokens[:, 5:6], tokens[:, 6:10], tokens[:, 10:])]
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), atol=1e-5, rtol=0)
        with pytest.raises(UsageError):
            model(tokens[:, :1], cache=cache)


def test_too_long_a_sequence() -> None:
    with pytest.raises(UsageError):
        CausalLM(_CONFIG)(torch.zeros(1, 65, dtype=torch.long))


def test_loss_is_the_plain_formula_and_so_are_its_gradients() -> None:
    model = CausalLM(_CONFIG)
    model.init_weights(0, std=0.2)
    tokens, targets = torch.randint(0, 97, (2, 11)), torch.randint(0, 97, (2, 11))
    targets[0, 3:6] = -100
    segments = torch.tensor([[0] * 5 + [1] * 6, [0] * 11])
    model.loss(tokens, targets, segments, z_loss=1e-2).backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    logits = model(tokens, segments_BT=segments).flatten(0, 1)
    scored = targets.flatten() != -100
    plain = F.cross_entropy(logits, targets.flatten()) + 1e-2 * torch.logsumexp(logits, -1)[scored].square().mean()
    plain.backward()
    torch.testing.assert_close(model.loss(tokens, targets, segments, z_loss=1e-2), plain)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=2e-6, rtol=1e-4, msg=name)
    losses = model.token_losses(tokens, targets, segments)
    torch.testing.assert_close(losses.flatten(), F.cross_entropy(logits, targets.flatten(), reduction="none"), atol=1e-5, rtol=0)


def test_router_z_loss_pushes_the_row(stock_dense: Make, tokens: torch.Tensor) -> None:
    pair = load_pair(stock_dense()[1], rows_LH=torch.ones(3, 32))
    base = pair.loss(tokens, tokens)
    weighted = pair.loss(tokens, tokens, router_z_loss=0.5)
    taps = Taps()
    pair.hidden(tokens, taps=taps)
    squares = torch.stack([F.softplus(logit).square().mean() for logit in taps.pair_logits]).mean()
    torch.testing.assert_close(weighted - base, 0.5 * squares)
    weighted.backward()
    assert all(bool(each.row.grad.abs().max() > 0) for each in expert_pairs(pair))


def test_taps_see_router_inputs_and_routing(tokens: torch.Tensor) -> None:
    model = _mixture(4, 2)
    inputs: dict[int, torch.Tensor] = {}
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    taps = Taps(ffn_input=inputs.__setitem__, routing=lambda layer, probabilities, picks: seen.__setitem__(layer, (probabilities, picks)))
    with torch.no_grad():
        model.hidden(tokens, taps=taps)
    for layer, block in enumerate(model.layers):
        torch.testing.assert_close(seen[layer][0], torch.softmax(inputs[layer] @ block.mlp.rows.t(), dim=-1))
        assert seen[layer][1].shape == (tokens.numel(), 2)


def test_generation_is_greedy_seeded_and_bounded() -> None:
    model = _mixture(3, 2)
    prompt = [5, 9, 40]
    greedy = list(generate(model, prompt, max_new_tokens=10, eos_id=-1))
    tokens = list(prompt)
    for token in greedy:
        with torch.no_grad():
            assert token == int(model(torch.tensor([tokens]))[0, -1].argmax())
        tokens.append(token)
    drawn = [list(generate(model, prompt, max_new_tokens=20, temperature=1.0, top_p=0.9, seed=seed, eos_id=-1)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(list(generate(model, prompt, max_new_tokens=500, eos_id=-1))) == 64 - 3 + 1
    assert list(generate(model, prompt, max_new_tokens=5, eos_id=greedy[0])) == []
    for bad in ([], [97], [0] * 65):
        with pytest.raises(UsageError):
            generate(model, bad, max_new_tokens=1)


@pytest.mark.parametrize("rank", [None, 3])
def test_checkpointed_layers_give_the_same_gradients_from_less_memory(rank: int | None) -> None:
    pair = CausalLM(_CONFIG, kind="pair", rank=rank)
    pair.init_weights(2, std=0.2)
    pair.requires_grad_(False)
    for block in pair.layers:
        block.mlp.expert.requires_grad_(True)
        block.mlp.row.requires_grad_(True)
    tokens = torch.randint(0, 97, (2, 40))
    segments = torch.tensor([[0] * 15 + [1] * 25, [0] * 40])
    seen: dict[bool, tuple[torch.Tensor, list[torch.Tensor], int]] = {}
    for pair.checkpoint_layers in (False, True):
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda each, saved=saved: saved.append(each) or each, lambda each: each):
            loss = pair.loss(tokens, tokens, segments, router_z_loss=0.1)
        held = {each.data_ptr(): each.numel() for each in saved}
        loss.backward()
        seen[pair.checkpoint_layers] = (loss.detach(), [p.grad for p in pair.parameters() if p.requires_grad], sum(held.values()))
        pair.zero_grad()
    torch.testing.assert_close(seen[True][:2], seen[False][:2], rtol=0, atol=0)
    assert seen[True][2] < seen[False][2] / 3


@pytest.mark.parametrize("products", [True, False])
def test_bf16_pair_trains_with_and_without_bf16_products(stock_dense: Make, monkeypatch: pytest.MonkeyPatch, products: bool) -> None:
    """Frozen bf16 weights on a CPU without bf16 products are multiplied in fp32, which gives the fp32 gradients of those weights."""
    _, folder = stock_dense()
    monkeypatch.setattr(model_module, "multiplies_bf16", lambda _: products)
    tokens = torch.randint(2, 97, (2, 23), generator=torch.Generator().manual_seed(3))
    pair = load_pair(folder, rows_LH=torch.ones(3, 32), dtype=torch.bfloat16)
    with torch.no_grad():
        for block in pair.layers:
            block.mlp.expert.down.weight.mul_(-1)
    exact = copy.deepcopy(pair).float()
    losses = [each.loss(tokens, tokens) for each in (exact, pair)]
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02 if products else 1e-5, atol=0)
    for loss in losses:
        loss.backward()
    assert pair.hidden(tokens).dtype == (torch.bfloat16 if products else torch.float32)
    for theirs, mine in zip(exact.parameters(), pair.parameters(), strict=True):
        if theirs.requires_grad:
            assert mine.grad.dtype == torch.float32
            if not products:
                torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-4)
