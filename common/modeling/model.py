"""One causal language model for all uses: OLMo 2's reordered-norm block (``modeling_olmo2.py``) with any of the three kinds of FFN."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.errors import UsageError
from common.modeling.attention import Attention, KVCache, Positions, RMSNorm
from common.modeling.config import ModelConfig
from common.modeling.feedforward import ExpertPair, FeedForward, LowRankPair, Mixture, RoutingTap, SwiGLU, check_allowed
from common.modeling.kernels import IGNORED, linear, linear_cross_entropy, token_cross_entropy
from common.modeling.pointwise import compile_pointwise
from common.modeling.products import multiplies_bf16

__all__ = ["CausalLM", "Kind", "Taps"]

Kind = Literal["dense", "pair", "mixture"]
_FFNS: dict[str, Callable[[ModelConfig], FeedForward]] = {"dense": SwiGLU, "pair": ExpertPair, "mixture": Mixture}


def _ffn(config: ModelConfig, kind: Kind, rank: int | None) -> FeedForward:
    return _FFNS[kind](config) if rank is None else LowRankPair(config, rank)


@dataclass(slots=True)
class Taps:
    """What a caller wants to see of a forward pass besides its result."""

    ffn_input: Callable[[int, Tensor], None] | None = None
    """Called with a layer's number and its FFN inputs, which are its router's inputs, ``[B * T, H]``."""
    routing: RoutingTap | None = None
    """Called for every layer of a mixture, and of a pair with experts 0 and 1."""
    pair_logits: list[Tensor] = field(default_factory=list)
    """Router logits ``[B * T]`` of every layer of a pair, with gradient, for an auxiliary loss."""


class Block(nn.Module):
    """``h = x + norm(attention(x)); y = h + norm(ffn(h))``."""

    def __init__(self, config: ModelConfig, kind: Kind, layer: int, rank: int | None) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp: FeedForward = _ffn(config, kind, rank)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_feedforward_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.layer = layer

    def forward(self, x: Tensor, positions: Positions, cache: KVCache | None, allowed: Tensor | None, taps: Taps | None) -> Tensor:
        """``[B, T, H] -> [B, T, H]``."""
        x = x + self.post_attention_layernorm(self.self_attn(x, positions, self.layer, cache))
        flat = x.reshape(-1, x.shape[-1])
        if taps is not None and taps.ffn_input is not None:
            taps.ffn_input(self.layer, flat)
        return x + self.post_feedforward_layernorm(self._mix(flat, allowed, taps)).view_as(x)

    def _mix(self, flat: Tensor, allowed: Tensor | None, taps: Taps | None) -> Tensor:
        if isinstance(self.mlp, SwiGLU):
            return self.mlp(flat)
        if isinstance(self.mlp, ExpertPair | LowRankPair):
            mixed, logit = self.mlp(flat)
            if taps is not None:
                taps.pair_logits.append(logit)
                if taps.routing is not None:
                    share = torch.sigmoid(logit.detach())
                    taps.routing(self.layer, torch.stack((1 - share, share), dim=-1), torch.tensor([[0, 1]]).expand(len(share), 2))
            return mixed
        mixed, probabilities, picks = self.mlp(flat, allowed)
        if taps is not None and taps.routing is not None:
            taps.routing(self.layer, probabilities, picks)
        return mixed


def _again_in_backward(block: nn.Module, x: Tensor, positions: Positions, allowed: Tensor | None, taps: Taps | None) -> Tensor:
    """A block whose activations are made again in backward, when the taps hear nothing."""
    first = [True]

    def run(x: Tensor) -> tuple[Tensor, ...]:
        own = None if taps is None else Taps(taps.ffn_input if first[0] else None, taps.routing if first[0] else None)
        first[0] = False
        out: Tensor = block(x, positions, None, allowed, own)
        return (out, *([] if own is None else own.pair_logits))

    out, *logits = checkpoint(run, x, use_reentrant=False, preserve_rng_state=False)
    if taps is not None:
        taps.pair_logits.extend(logits)
    return out


class CausalLM(nn.Module):
    """An OLMo-2-style language model whose FFNs are dense, expert pairs, or mixtures.

    Args:
        config: the sizes.
        kind: of the FFNs; by default a mixture if ``config.num_experts > 1``, else dense.
        rank: of the experts of pairs: their matrices are the public ones plus a product of two factors of this rank; None means full.

    Raises:
        UsageError: a rank of less than 1, or of anything but pairs.
    """

    def __init__(self, config: ModelConfig, *, kind: Kind | None = None, rank: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.kind: Kind = kind or ("mixture" if config.num_experts > 1 else "dense")
        if rank is not None and (self.kind != "pair" or rank < 1):
            raise UsageError("Only the expert of a pair has a rank, of at least 1.")
        self.rank = rank
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, self.kind, layer, rank) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = None if config.tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.checkpoint_layers = False
        """Keep only every layer's input for backward, which runs the layer again: a third more work for a fraction of the memory."""
        self._allowed: Tensor | None = None

    def compile_for_training(self) -> None:
        """Compile what gains by it, at the first step and in seconds: the elementwise kernels on a CPU, whole layers elsewhere."""
        if self.embed_tokens.weight.device.type == "cpu":
            compile_pointwise()
            return
        for block in self.layers:
            block.compile()

    def init_weights(self, seed: int, *, std: float = 0.02) -> None:
        """Draw every matrix from ``N(0, std)`` and set every norm to one, the same for the same ``seed`` on every machine.

        The factors of low-rank experts start as :meth:`init_low_rank` says.
        """
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() >= 2:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
                else:
                    parameter.fill_(0.0 if name.endswith("mlp.row") else 1.0)
        if self.rank is not None:
            self.init_low_rank(seed)

    def init_low_rank(self, seed: int) -> None:
        """Make every low-rank expert its public FFN: ``A`` drawn from ``N(0, 1 / columns)``, ``B`` zero; repeatable for a ``seed``.

        Raises:
            UsageError: the model has no low-rank experts.
        """
        if self.rank is None:
            raise UsageError("The model has no low-rank experts.")
        generator = torch.Generator().manual_seed(seed)
        for block in self.layers:
            if isinstance(block.mlp, LowRankPair):
                block.mlp.expert.init(generator)

    @property
    def head_weight(self) -> Tensor:
        """The output matrix ``[V, H]``, which is the embedding's when they are tied."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    @property
    def allowed(self) -> Tensor | None:
        """Which experts of a mixture take part, ``[N]`` bool; None means all."""
        return self._allowed

    @allowed.setter
    def allowed(self, flags: Tensor | None) -> None:
        self._allowed = None if flags is None else self._checked(flags)

    def _checked(self, flags: Tensor) -> Tensor:
        if self.kind != "mixture":
            raise UsageError("Only a mixture has experts to exclude.")
        check_allowed(flags, self.config.num_experts)
        return flags.to(self.embed_tokens.weight.device)

    def hidden(
        self,
        tokens_BT: Tensor,
        *,
        segments_BT: Tensor | None = None,
        cache: KVCache | None = None,
        allowed: Tensor | None = None,
        taps: Taps | None = None,
    ) -> Tensor:
        """States after the final norm, ``[B, T, H]``.

        Args:
            tokens_BT: token numbers.
            segments_BT: number of the document of every token; no token attends to another document's.
            cache: keys and values of earlier tokens; these ``T`` are appended.
            allowed: as :attr:`allowed`, for this call.
            taps: what else to report.

        Raises:
            UsageError: a sequence longer than the model's positions or the cache, or an impossible choice of experts.
        """
        chosen = self._allowed if allowed is None else self._checked(allowed)
        positions = Positions(self.config, tokens_BT, segments_BT, 0 if cache is None else cache.length)
        x = self.embed_tokens(tokens_BT)
        if cache is None and x.dtype == torch.bfloat16 and not multiplies_bf16(x.device):
            x = x.float()
        for block in self.layers:
            if self.checkpoint_layers and torch.is_grad_enabled():
                x = _again_in_backward(block, x, positions, chosen, taps)
            else:
                x = block(x, positions, cache, chosen, taps)
        if cache is not None:
            cache.advance(tokens_BT.shape[1])
        return self.norm(x)

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        segments_BT: Tensor | None = None,
        cache: KVCache | None = None,
        allowed: Tensor | None = None,
        taps: Taps | None = None,
    ) -> Tensor:
        """Logits ``[B, T, V]``; arguments and errors as :meth:`hidden`."""
        x = self.hidden(tokens_BT, segments_BT=segments_BT, cache=cache, allowed=allowed, taps=taps)
        return linear(x, self.head_weight)

    def loss(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        segments_BT: Tensor | None = None,
        *,
        z_loss: float = 0.0,
        router_z_loss: float = 0.0,
        normaliser: float | None = None,
    ) -> Tensor:
        """Mean cross-entropy in nats over the scored positions, as a scalar with gradient.

        Args:
            tokens_BT: inputs.
            targets_BT: the token that follows each input; -100 is not scored.
            segments_BT: documents, as in :meth:`hidden`.
            z_loss: factor of the output head's squared log-sum-exp.
            router_z_loss: factor of the pair's router's squared log-sum-exp, averaged over layers.
            normaliser: divide the sums by this instead of by the number of scored positions (for accumulating several batches).
        """
        taps = Taps() if router_z_loss and self.kind == "pair" else None
        x = self.hidden(tokens_BT, segments_BT=segments_BT, taps=taps).flatten(0, 1)
        targets = targets_BT.flatten()
        scored = float((targets != IGNORED).sum()) if normaliser is None else normaliser
        total = linear_cross_entropy(x, self.head_weight, targets, z_loss=z_loss) / max(scored, 1.0)
        if taps is not None:
            share = targets.numel() if normaliser is None else normaliser
            squares = torch.stack([nn.functional.softplus(logit).square().sum() for logit in taps.pair_logits])
            total = total + router_z_loss * squares.mean() / share
        return total

    @torch.no_grad()
    def token_losses(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        segments_BT: Tensor | None = None,
        *,
        allowed: Tensor | None = None,
        taps: Taps | None = None,
    ) -> Tensor:
        """Cross-entropy in nats of every position, ``[B, T]`` fp32, 0 where the target is -100; for evaluation."""
        x = self.hidden(tokens_BT, segments_BT=segments_BT, allowed=allowed, taps=taps).flatten(0, 1)
        return token_cross_entropy(x, self.head_weight, targets_BT.flatten()).view_as(targets_BT)
