"""Router rows: what each kind is by definition, and that the discriminant discriminates."""

from __future__ import annotations

import pytest
import torch

from common.errors import DataError, UsageError
from owner_client.training import routers
from owner_client.training.settings import TrainSettings


def _two_sides(hidden: int = 24, count: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    """Private and public inputs with a common offset, unequal spreads and different means."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(-1, 0.5, hidden)
    offset = torch.randn(hidden, generator=generator)
    shift = 0.8 * spread * torch.randn(hidden, generator=generator)
    private = torch.randn(count, hidden, generator=generator) * spread + offset + shift
    return private, torch.randn(count, hidden, generator=generator) * spread + offset


def _accuracy(row: torch.Tensor, private: torch.Tensor, public: torch.Tensor) -> float:
    return 0.5 * float((private @ row > 0).float().mean() + (public @ row <= 0).float().mean())


def test_discriminant_is_the_optimum_of_its_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    private, public = _two_sides()
    second = public.t() @ public / len(public)
    row = routers.discriminant_row(private, public, second).double().requires_grad_()
    penalty = 0.5 * routers.RIDGE * row @ second.double() @ row
    loss = 0.5 * torch.nn.functional.softplus(-(private.double() @ row)).mean()
    loss = loss + 0.5 * torch.nn.functional.softplus(public.double() @ row).mean() + penalty
    loss.backward()
    assert float(row.grad.abs().max()) < 1e-4
    assert _accuracy(row.detach().float(), private, public) > 0.9
    monkeypatch.setattr(routers, "_NEWTON_WIDTH", 1)
    torch.testing.assert_close(routers.discriminant_row(private, public, second), row.detach().float(), rtol=2e-2, atol=2e-3)


def test_discriminant_does_not_depend_on_units() -> None:
    private, public = _two_sides()
    scale = torch.logspace(-0.4, 0.4, 24)
    one = routers.discriminant_row(private, public, public.t() @ public / len(public))
    other = routers.discriminant_row(private * scale, public * scale, (public * scale).t() @ (public * scale) / len(public))
    torch.testing.assert_close(other * scale, one, rtol=2e-2, atol=2e-3)


def test_diagonal_moments_and_moments_alone_discriminate_too() -> None:
    private, public = _two_sides()
    second = public.t() @ public / len(public)
    assert _accuracy(routers.discriminant_row(private, public, second.diagonal()), private, public) > 0.9
    row = routers.least_squares_row(private, public.mean(0), second)
    assert _accuracy(row, private, public) > 0.85
    assert 0.2 < float(row.norm() / routers.discriminant_row(private, public, second).norm()) < 5
    assert _accuracy(routers.least_squares_row(private, public.mean(0), second.diagonal()), private, public) > 0.7


def test_hidden_mean_is_the_papers_router() -> None:
    """Half the difference of the two directions, against a public row of zero."""
    private, public = _two_sides()
    row = routers.hidden_mean_row(private, public.mean(0))
    directions = [side.mean(0) / side.mean(0).norm() for side in (private, public)]
    torch.testing.assert_close(row, 0.5 * (directions[0] - directions[1]))


def test_random_rows_are_seeded() -> None:
    rows = routers.random_rows(3, 4000, seed=4)
    assert torch.equal(rows, routers.random_rows(3, 4000, seed=4))
    assert not torch.equal(rows, routers.random_rows(3, 4000, seed=5))
    assert abs(float(rows.std()) - 0.02) < 0.001


def test_damaged_inputs_are_refused() -> None:
    private, public = _two_sides()
    private[3, 4] = float("nan")
    with pytest.raises(DataError):
        routers.discriminant_row(private, public, public.t() @ public / len(public))


@pytest.mark.parametrize(
    "changes",
    [
        {"router": "embedding"},
        {"steps": 3, "epochs": 1.0},
        {"steps": 0},
        {"public_share": 1.0},
        {"lr": float("nan")},
        {"lr": 0.0},
        {"batch_tokens": 100, "seq_len": 64},
        {"beta1": 1.0},
        {"momentum": 1.0},
        {"optimizer": "sgd"},
        {"seed": -1},
        {"device": "tpu"},
        {"heldout": -0.1},
    ],
)
def test_impossible_settings(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        TrainSettings(**changes)


def test_length_and_learning_rate() -> None:
    assert TrainSettings(steps=7).total_steps(10**9) == 7
    assert TrainSettings(tokens=41_000).total_steps(1) == 10
    assert TrainSettings(epochs=1.0, public_share=0.0).total_steps(4096 * 10) == 10
    assert TrainSettings(epochs=1.0, public_share=0.5).total_steps(4096 * 10) == 20
    settings = TrainSettings(lr=1.0, warmup=10, min_lr_ratio=0.1)
    rates = [settings.lr_at(step, 200) for step in range(200)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1, abs=1e-2)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert TrainSettings(lr=1.0, schedule="constant").lr_at(150, 200) == 1.0
    assert TrainSettings().for_width(512).lr == pytest.approx(5e-3)
    assert TrainSettings(optimizer="adamw").for_width(512).lr == pytest.approx(2.5e-3)
    assert TrainSettings(optimizer="muon").for_width(512).lr == pytest.approx(5e-3)
    assert TrainSettings(lr=1e-4).for_width(512).lr == 1e-4
    with pytest.raises(UsageError):
        TrainSettings().lr_at(0, 10)
    assert TrainSettings().digest() == TrainSettings(checkpoint_every=7).digest() != TrainSettings(lr=2e-3).digest()


def _documents(inputs: torch.Tensor, of: int) -> routers.RouterInputs:
    """A sample of one layer whose every ``of`` inputs are a document."""
    sample = routers.RouterInputs(1)
    sample.add(0, inputs)
    sample.note_documents(torch.arange(len(inputs)) // of)
    return sample


def test_public_documents_that_look_private_are_left_out_of_a_refit() -> None:
    private, public = _two_sides()
    kind = private[:200] + 0.01
    mixed = _documents(torch.cat((public, kind)), 20)
    kept = routers.foreign(_documents(private, 20), mixed, layer=0)
    assert float(kept[: len(public)].float().mean()) > 0.95
    assert not bool(kept[len(public) :].any())
    [row] = routers.refit_rows(_documents(private, 20), mixed, layers=1)
    with_them = routers.discriminant_row(private, mixed.of(0), mixed.of(0).t() @ mixed.of(0) / len(mixed.of(0)))
    assert float((private @ row).mean()) > float((private @ with_them).mean())


def test_a_refit_without_foreign_documents_takes_them_all() -> None:
    private, _ = _two_sides()
    kept = routers.foreign(_documents(private[:1000], 1000), _documents(private[1000:] * 1.01, 1000), layer=0)
    assert bool(kept.all())
