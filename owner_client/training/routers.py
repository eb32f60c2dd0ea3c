"""How a router row starts: a discriminant of private against public router inputs, the paper's hidden mean, or random.

The public row is zero, so a row ``w`` gives the expert the share ``sigmoid(w . x)``; there is no intercept because the exported
checkpoint has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from common.errors import DataError
from common.modeling.loading import RouterStats
from common.modeling.model import CausalLM, Taps
from common.textdata.packing import PackedSequences, Window, make_batch

__all__ = [
    "RouterInputs",
    "collect_inputs",
    "discriminant_row",
    "fit_rows",
    "foreign",
    "hidden_mean_row",
    "least_squares_row",
    "random_rows",
    "refit_rows",
]

RIDGE = 1e-3  # factor of the squared row in whitened coordinates, against a mean log-likelihood
_NEWTON_WIDTH = 2048  # above this width the Hessian is not formed
_NEWTON_STEPS = 30
_TOLERANCE = 1e-7  # of the gradient's largest element
_FLOOR = 1e-5  # of the largest eigenvalue (or diagonal element) of the second moment
_SAMPLE_BYTES = 2 << 30  # router inputs of one side and all layers held at once
_RANDOM_STD = 0.02


class RouterInputs:
    """Router inputs of one kind of text, a sample of tokens for every layer, on the CPU in fp32."""

    def __init__(self, layers: int) -> None:
        self._pieces: list[list[Tensor]] = [[] for _ in range(layers)]
        self._documents: list[Tensor] = []

    def add(self, layer: int, inputs_NH: Tensor) -> None:
        """Keep ``inputs_NH`` for ``layer``."""
        self._pieces[layer].append(inputs_NH.detach().to(device="cpu", dtype=torch.float32))

    def of(self, layer: int) -> Tensor:
        """All inputs of ``layer``, ``[n, H]``."""
        return torch.cat(self._pieces[layer])

    def note_documents(self, documents_N: Tensor) -> None:
        """Keep which document, counted through the sample, each of the latest inputs is of; a document cut by a sequence's end is two."""
        self._documents.append(documents_N)

    @property
    def documents(self) -> Tensor:
        """The document of every input, ``[n]`` int64."""
        return torch.cat(self._documents)


@torch.no_grad()
def collect_inputs(model: CausalLM, sequences: PackedSequences, *, tokens: int, seq_len: int) -> RouterInputs:
    """Router inputs of ``model``, an anchor or a pair, on the first sequences, about ``tokens`` of them or what memory allows.

    A wide model's sample is thinned evenly, so that it still comes from many sequences.
    """
    config = model.config
    held = RouterInputs(config.num_layers)
    room = max(config.hidden_size, _SAMPLE_BYTES // (4 * config.hidden_size * config.num_layers))
    stride = max(1, -(-tokens // room))
    device = model.embed_tokens.weight.device
    count = min(max(1, tokens // seq_len), sequences.per_epoch)
    taps = Taps(ffn_input=lambda layer, inputs: held.add(layer, inputs[::stride]))
    seen = 0
    for first in range(0, count, 8):
        windows = [sequences.window(number) for number in range(first, min(count, first + 8))]
        batch = make_batch(windows)
        segments = None if batch.segments is None else torch.from_numpy(batch.segments).to(device)
        inputs, targets = torch.from_numpy(batch.tokens).to(device), torch.from_numpy(batch.targets).to(device)
        # The scoring method and not `hidden`, because a model that is divided over processes can be called by it.
        model.token_losses(inputs, targets, segments, taps=taps)
        documents = _documents(windows, seen)
        seen = int(documents.max()) + 1
        held.note_documents(documents[::stride])
    return held


def _documents(windows: Sequence[Window], first: int) -> Tensor:
    """Numbers from ``first`` of the documents of every input of ``windows``, in their order, ``[B * T]``."""
    numbers = []
    for window in windows:
        segments = torch.from_numpy(window.segments[:-1])
        numbers.append(segments + first)
        first += int(segments.max()) + 1
    return torch.cat(numbers)


def _whitener(second: Tensor) -> Tensor:
    """``S^(-1/2)`` of the second moment ``[H, H]`` (or of its diagonal ``[H]``), small directions floored; fp64, same shape."""
    second = second.double()
    if second.dim() == 1:
        return second.clamp_min(float(second.max()) * _FLOOR).rsqrt()
    values, vectors = torch.linalg.eigh(second)
    scale = values.clamp_min(float(values.max()) * _FLOOR).rsqrt()
    return (vectors * scale) @ vectors.t()


def _apply(whitener: Tensor, x: Tensor) -> Tensor:
    return x * whitener if whitener.dim() == 1 else x @ whitener


def discriminant_row(private_NH: Tensor, public_NH: Tensor, second: Tensor, *, ridge: float = RIDGE) -> Tensor:
    """Row of a logistic regression without intercept of private (1) against public (0) router inputs, both sides weighing the same.

    The penalty ``ridge / 2 * |v|^2`` is on the row in coordinates whitened by the public second moment, where every direction of
    public text has the same spread: a direction in which public text hardly varies is not preferred for that.

    Args:
        private_NH: ``[n, H]``.
        public_NH: ``[m, H]``.
        second: public ``E[x x^T]``, ``[H, H]``, or its diagonal ``[H]``.
        ridge: strength of the penalty.

    Returns:
        ``[H]`` fp32.

    Raises:
        DataError: an input is not finite.
    """
    whitener = _whitener(second)
    z = _apply(whitener, torch.cat((private_NH, -public_NH)).double())
    if not bool(torch.isfinite(z).all()):
        raise DataError("The anchor's router inputs are not finite; the anchor is damaged.")
    weights = torch.cat((torch.full((len(private_NH),), 0.5 / len(private_NH)), torch.full((len(public_NH),), 0.5 / len(public_NH))))
    fit = _newton if z.shape[1] <= _NEWTON_WIDTH else _lbfgs
    return _apply(whitener, fit(z, weights.double(), ridge)).float()


def _objective(z: Tensor, weights: Tensor, v: Tensor, ridge: float) -> Tensor:
    return (weights * torch.nn.functional.softplus(-(z @ v))).sum() + 0.5 * ridge * v.square().sum()


def _newton(z: Tensor, weights: Tensor, ridge: float) -> Tensor:
    """Minimise :func:`_objective` by Newton's method with halved steps; ``z`` has the sign of its class in it."""
    v = torch.zeros(z.shape[1], dtype=torch.float64)
    value = _objective(z, weights, v, ridge)
    for _ in range(_NEWTON_STEPS):
        miss = torch.sigmoid(-(z @ v))
        gradient = ridge * v - z.t() @ (weights * miss)
        if float(gradient.abs().max()) < _TOLERANCE:
            break
        hessian = z.t() @ (z * (weights * miss * (1 - miss))[:, None])
        hessian.diagonal().add_(ridge)
        step = torch.linalg.solve(hessian, gradient)
        size = 1.0
        while float(_objective(z, weights, v - size * step, ridge)) > float(value) and size > 1e-6:
            size /= 2
        v = v - size * step
        value = _objective(z, weights, v, ridge)
    return v


def _lbfgs(z: Tensor, weights: Tensor, ridge: float) -> Tensor:
    """Minimise :func:`_objective` without forming the Hessian."""
    v = torch.zeros(z.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([v], max_iter=200, tolerance_grad=_TOLERANCE, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = _objective(z, weights, v, ridge)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(closure)
    return v.detach()


def least_squares_row(private_NH: Tensor, public_mean: Tensor, public_second: Tensor) -> Tensor:
    """The discriminant from moments alone, for an anchor without public text: ``[H]`` fp32.

    Least squares of +1 (private) and -1 (public) without intercept needs only means and second moments: ``M^-1 d`` with ``M`` the
    mean of the two second moments and ``d`` half the difference of means. It is scaled to log-odds as linear discriminant analysis
    scales them, ``2 M^-1 d / (1 - d^T M^-1 d)``.
    """
    private = private_NH.double()
    half = 0.5 * (private.mean(0) - public_mean.double())
    if public_second.dim() == 1:
        moment = 0.5 * (private.square().mean(0) + public_second.double())
        solved = half / moment.clamp_min(float(moment.max()) * _FLOOR)
    else:
        moment = 0.5 * (private.t() @ private / len(private) + public_second.double())
        moment.diagonal().add_(float(moment.diagonal().max()) * _FLOOR)
        solved = torch.linalg.solve(moment, half)
    explained = float((half * solved).sum())
    return (2 * solved / max(1 - explained, 0.05)).float()


def hidden_mean_row(private_NH: Tensor, public_mean: Tensor) -> Tensor:
    """The paper's domain vector from mean router inputs, ``[H]`` fp32: half the difference of the two means' directions.

    With the public row subtracted from both rows the router is the same as with the two directions themselves.
    """
    private_mean = private_NH.double().mean(0)
    directions = [mean / mean.norm().clamp_min(1e-12) for mean in (private_mean, public_mean.double())]
    return (0.5 * (directions[0] - directions[1])).float()


def random_rows(layers: int, hidden: int, *, seed: int) -> Tensor:
    """Rows from ``N(0, 0.02)``, ``[L, H]`` fp32, the same for the same seed."""
    return torch.randn(layers, hidden, generator=torch.Generator().manual_seed(seed)) * _RANDOM_STD


def fit_rows(
    kind: str, stats: RouterStats | None, private: RouterInputs | None, public: RouterInputs | None, *, layers: int, hidden: int, seed: int
) -> Tensor:
    """Rows of every layer, ``[L, H]`` fp32, of the named kind; a discriminant without public inputs uses the public moments alone."""
    if kind == "random" or private is None or stats is None:
        return random_rows(layers, hidden, seed=seed)
    rows: Iterable[Tensor]
    if kind == "hidden-mean":
        rows = (hidden_mean_row(private.of(layer), stats.mean[layer]) for layer in range(layers))
    elif public is not None:
        rows = (discriminant_row(private.of(layer), public.of(layer), stats.second[layer]) for layer in range(layers))
    else:
        rows = (least_squares_row(private.of(layer), stats.mean[layer], stats.second[layer]) for layer in range(layers))
    return torch.stack(list(rows))


def foreign(private: RouterInputs, public: RouterInputs, *, layer: int) -> Tensor:
    """Which public inputs are of documents that do not look like the owner's, ``[m]`` bool.

    Public text holds some of every domain. A document that the discriminant of ``layer`` takes for private on average over its tokens
    would teach the row to miss the owner's own domain. If no document is left, all are.
    """
    inputs = public.of(layer)
    scores = inputs @ discriminant_row(private.of(layer), inputs, _second_moment(inputs))
    documents = public.documents
    count = int(documents.max()) + 1
    sums = torch.zeros(count, dtype=scores.dtype).index_add_(0, documents, scores)
    kept = (sums <= 0)[documents]
    return kept if bool(kept.any()) else torch.ones_like(kept)


def refit_rows(private: RouterInputs, public: RouterInputs, *, layers: int) -> Tensor:
    """Discriminant rows of a trained pair from its own router inputs, ``[L, H]`` fp32, against the public documents of other domains.

    Rows that were trained with the expert know only the two of them; these compete better with the rows of other owners
    (``docs/experiments.md``).

    Args:
        private: inputs of the owner's text, from the pair.
        public: inputs of public text, from the pair.
        layers: of the model.
    """
    kept = foreign(private, public, layer=layers - 1)
    rows = []
    for layer in range(layers):
        inputs = public.of(layer)[kept]
        rows.append(discriminant_row(private.of(layer), inputs, _second_moment(inputs)))
    return torch.stack(rows)


def _second_moment(inputs_NH: Tensor) -> Tensor:
    """``E[x x^T]``, ``[H, H]``, or its diagonal for wide models as anchors publish it."""
    if inputs_NH.shape[1] > _NEWTON_WIDTH:
        return inputs_NH.square().mean(0)
    return inputs_NH.t() @ inputs_NH / len(inputs_NH)
