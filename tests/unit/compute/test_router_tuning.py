"""Tuning a real small mixture: only rows move, towards a lower loss, with the gradient that stock transformers computes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import ArchitectureError, NonFiniteError, UsageError
from common.modeling.feedforward import Mixture
from common.modeling.loading import load_model
from common.modeling.model import CausalLM
from common.textdata.packing import PackedSequences, Window
from common.textdata.tokens import load_tokenizer, tokenize_to_file
from coordinator.compute.router_tuning import TuningSettings, UniformMix, mixture_rows, set_rows, tune_rows
from tests.unit.compute.small_models import topics

SHORT = TuningSettings(steps=12, batch_tokens=512, seq_len=64, lr=0.03)
LONG = TuningSettings(steps=60, batch_tokens=512, seq_len=64, lr=0.03)


class Repeated:
    """The first ``count`` windows over and over, so that losses of different steps compare."""

    def __init__(self, source: PackedSequences, count: int) -> None:
        self._source, self._count = source, count

    def window(self, number: int) -> Window:
        return self._source.window(number % self._count)


@pytest.fixture(scope="module")
def packed(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> PackedSequences:
    tokens = tokenize_to_file(topics()[:20], load_tokenizer(mixture), tmp_path_factory.mktemp("tokens") / "t")
    return PackedSequences(tokens, seq_len=64, seed=3)


@pytest.fixture
def model(mixture: Path) -> CausalLM:
    return load_model(mixture)


def weights(model: CausalLM) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_the_loss_falls_and_only_private_rows_move(model: CausalLM, packed: PackedSequences) -> None:
    before, rows = weights(model), mixture_rows(model)
    tuned = tune_rows(model, Repeated(packed, 8), LONG)
    assert tuned.last_loss < tuned.first_loss - 0.02
    assert tuned.rows.shape == rows.shape == (2, 3, 32)
    assert torch.equal(tuned.rows[:, 0], rows[:, 0])
    assert float((tuned.rows[:, 1:] - rows[:, 1:]).abs().amax((0, 2)).min()) > 0.05
    after = weights(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    set_rows(model, tuned.rows)
    assert torch.equal(mixture_rows(model), tuned.rows)
    again = tune_rows(load_like(model, before), Repeated(packed, 8), LONG)
    assert torch.equal(again.rows, tuned.rows)


def load_like(model: CausalLM, state: dict[str, torch.Tensor]) -> CausalLM:
    model.load_state_dict(state)
    return model


def test_the_public_row_is_tuned_on_request(model: CausalLM, packed: PackedSequences) -> None:
    settings = TuningSettings(steps=3, batch_tokens=512, seq_len=64, lr=0.03, tune_public=True)
    assert float(tune_rows(model, packed, settings).rows[:, 0].abs().min(-1).values.max()) > 0


def test_the_gradient_is_that_of_stock_transformers(mixture: Path, model: CausalLM, packed: PackedSequences) -> None:
    """One step of AdamW moves every element by the learning rate against its gradient's sign; the sign is compared where it is clear."""
    transformers = pytest.importorskip("transformers")
    stock = transformers.AutoModelForCausalLM.from_pretrained(mixture)
    window = packed.window(0)
    assert not window.segments.any()
    tokens = torch.from_numpy(window.tokens)[None]
    logits = stock(tokens[:, :-1]).logits[0]
    torch.nn.functional.cross_entropy(logits, tokens[0, 1:]).backward()
    gradient = torch.stack([block.mlp.gate.weight.grad for block in stock.model.layers])
    settings = TuningSettings(steps=1, batch_tokens=64, seq_len=64, lr=1e-3)
    moved = tune_rows(model, packed, settings).rows - mixture_rows(model)
    clear = gradient[:, 1:].abs() > 1e-6
    assert float(clear.float().mean()) > 0.95
    assert torch.equal(torch.sign(moved[:, 1:][clear]), -torch.sign(gradient[:, 1:][clear]))


def test_small_steps_of_many_parts_are_one_step(model: CausalLM, packed: PackedSequences) -> None:
    whole = tune_rows(model, packed, SHORT)
    parts = tune_rows(model, packed, TuningSettings(steps=12, batch_tokens=512, seq_len=64, lr=0.03, micro_tokens=128))
    torch.testing.assert_close(whole.rows, parts.rows, atol=2e-3, rtol=0)
    assert whole.last_loss == pytest.approx(parts.last_loss, abs=1e-4)


def test_at_least_two_experts_are_active(model: CausalLM, packed: PackedSequences) -> None:
    for block in model.layers:
        assert isinstance(block.mlp, Mixture)
        block.mlp.top_k = 1
    settings = TuningSettings(steps=1, batch_tokens=64, seq_len=64)
    assert tune_rows(model, packed, settings).top_k == 2
    assert all(block.mlp.top_k == 1 for block in model.layers)
    with pytest.raises(UsageError, match="4 experts cannot be active"):
        tune_rows(model, packed, TuningSettings(steps=1, batch_tokens=64, seq_len=64, top_k=4))
    with pytest.raises(UsageError, match="no gradient"):
        TuningSettings(top_k=1)


def test_an_interrupted_run_leaves_the_model_as_it_was(model: CausalLM, packed: PackedSequences) -> None:
    before = weights(model)

    def stop(label: str, done: int, total: int, unit: str, figures: object = None) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune_rows(model, packed, SHORT, progress=stop)
    after = weights(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_loss_that_is_no_number_ends_the_run(model: CausalLM, packed: PackedSequences) -> None:
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="step 1"):
        tune_rows(model, packed, SHORT)


def test_what_cannot_be_tuned_is_refused(anchor: Path, model: CausalLM, packed: PackedSequences) -> None:
    with pytest.raises(ArchitectureError, match="not a mixture"):
        tune_rows(load_model(anchor), packed, SHORT)
    with pytest.raises(UsageError, match="longer than the model's 64"):
        tune_rows(model, packed, TuningSettings(steps=1, batch_tokens=256, seq_len=128))
    with pytest.raises(ArchitectureError, match="do not fit"):
        set_rows(model, torch.zeros(2, 4, 32))
    for bad in ({"steps": 0}, {"lr": float("nan")}, {"batch_tokens": 300}, {"seed": -1}, {"min_lr_ratio": 2.0}):
        with pytest.raises(UsageError):
            TuningSettings(**bad)


class Numbered:
    """Windows that tell which text they are from and their number in it."""

    def __init__(self, text: int) -> None:
        self._text = text

    def window(self, number: int) -> Window:
        return Window(np.asarray([self._text, number]), np.zeros(2, dtype=np.int64))


def test_the_mix_is_uniform_over_texts_and_skips_nothing() -> None:
    mix = UniformMix([Numbered(text) for text in range(3)], seed=5)
    drawn = [tuple(int(value) for value in mix.window(number).tokens) for number in range(60)]
    assert Counter(drawn) == Counter((text, number) for text in range(3) for number in range(20))
    assert len({tuple(text for text, _ in drawn[start : start + 3]) for start in range(0, 60, 3)}) > 3
    assert drawn == [
        tuple(int(value) for value in UniformMix([Numbered(text) for text in range(3)], seed=5).window(n).tokens) for n in range(60)
    ]
    with pytest.raises(UsageError, match="no text"):
        UniformMix([], seed=0)
