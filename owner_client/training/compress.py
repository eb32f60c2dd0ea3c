"""Cutting a full expert down to low rank by singular values (FlexMoRE, arXiv 2602.08818).

Of every matrix the difference to the anchor's, ``W - W_anchor = U S V^T``, keeps its ``r`` largest singular values: ``B = U sqrt(S)`` and
``A = sqrt(S) V^T``, which no other product of that rank comes closer to in the Frobenius norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from common.errors import TemplateError, UsageError
from common.formats.layout import PRIVACY_NAME, ROUTER_NAME, factor_names, ffn_names
from common.modeling.loading import read_config
from common.progress import ProgressSink, silent
from common.weights.index import read_header
from common.weights.template import is_weights_name
from owner_client.training.package import write_tensors

__all__ = ["Compressed", "compress_expert"]

_ROUNDING: Final[Mapping[torch.dtype, float]] = {torch.float32: 0.0, torch.bfloat16: 2.5e-3, torch.float16: 3.2e-4}
"""What rounding both factors to a dtype adds to the relative error, from above (``tests/unit/training/test_training_compress.py``)."""
_LABEL: Final = "Compressing"


@dataclass(frozen=True, slots=True)
class Compressed:
    """What was written: the folder of files, the rank, and the relative Frobenius errors of ``B A`` as stored, over all and by matrix."""

    files: Path
    rank: int
    error: float
    matrices: Mapping[str, float]


def compress_expert(
    package: Path,
    anchor_folder: Path,
    out_dir: Path,
    *,
    rank: int | None = None,
    error: float | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    progress: ProgressSink = silent,
) -> Compressed:
    """Write the files of a low-rank package for the full expert in ``package``.

    Args:
        package: a full expert's package, checked by the caller.
        anchor_folder: the anchor it was trained against.
        out_dir: must not exist; appears whole at the end.
        rank: of every matrix; or
        error: the largest relative Frobenius error of the differences over all matrices, by which the smallest rank is chosen.
        device: where to compute the singular values.
        progress: hears of every matrix.

    Raises:
        UsageError: not one of ``rank`` and ``error``, one out of its range, or no such device.
        TemplateError: the package does not hold the anchor's matrices.
        NonFiniteError: a factor holds values that are not finite in the anchor's dtype.
        StorageError: the disk is full or not writable.
    """
    config = read_config(anchor_folder)
    most = min(config.hidden_size, config.intermediate_size)
    if (rank is None) == (error is None):
        raise UsageError("Give either a rank or an error.")
    if rank is not None and not 1 <= rank <= most:
        raise UsageError(f"The rank must be between 1 and {most} for this anchor, not {rank}.")
    if error is not None and not 0 < error < 1:
        raise UsageError(f"The error must be between 0 and 1, not {error:g}.")
    weights = [path for path in sorted(anchor_folder.iterdir()) if is_weights_name(path.name)]
    with _Differences(weights, sorted(package.glob("part-*.safetensors")), config.num_layers, _device(device)) as differences:
        if rank is None:
            rank = _rank_for(error or 0.0, differences, progress)
        factors, errors = _factorise(differences, rank, progress)
    write_tensors(factors, load_file(package / ROUTER_NAME), out_dir, privacy=(package / PRIVACY_NAME).read_bytes())
    over_all = _relative(sum(left for left, _ in errors.values()), sum(whole for _, whole in errors.values()))
    return Compressed(out_dir, rank, over_all, {name: _relative(*pair) for name, pair in errors.items()})


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("There is no CUDA device that torch can use; choose the device cpu or auto.")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def _relative(left: float, whole: float) -> float:
    """Relative error from the squared norms of what is left and of the whole; nothing of nothing is no error."""
    return (left / whole) ** 0.5 if whole else 0.0


class _Differences:
    """Every matrix's difference to the anchor's, one at a time, in layer order: name, dtype as stored, and values in float32."""

    def __init__(self, anchor: Sequence[Path], parts: Sequence[Path], layers: int, device: torch.device) -> None:
        self.names = tuple(ffn_names(layers))
        self._device = device
        self._paths = [{span.name: path for path in paths for span in read_header(path).tensors} for paths in (anchor, parts)]
        self._open = ExitStack()
        self._streams: dict[Path, Any] = {}
        missing = [name for name in self.names for places in self._paths if name not in places]
        if missing:
            raise TemplateError(f"Matrix {missing[0]} is missing from the anchor or from the package, which must be a full one.")

    def __enter__(self) -> _Differences:
        for path in sorted({path for places in self._paths for path in places.values()}):
            self._streams[path] = self._open.enter_context(safe_open(path, framework="pt"))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __iter__(self) -> Iterator[tuple[str, torch.dtype, Tensor]]:
        for name in self.names:
            base, expert = (self._streams[places[name]].get_tensor(name) for places in self._paths)
            yield name, base.dtype, expert.to(self._device, torch.float32) - base.to(self._device, torch.float32)


def _rank_for(error: float, differences: _Differences, progress: ProgressSink) -> int:
    """The smallest rank whose error over all matrices is at most ``error``, counting what rounding the factors adds."""
    energy, rounding = torch.zeros(0, dtype=torch.float64), 0.0
    for done, (_, dtype, delta) in enumerate(differences, 1):
        values = torch.linalg.svdvals(delta).double().cpu().square()
        energy = values if not energy.numel() else energy + values
        rounding = max(rounding, _ROUNDING.get(dtype, 0.0))
        progress("Choosing the rank", done, len(differences.names), "matrices")
    kept = energy.cumsum(0)
    total = kept[-1]
    enough = (total - kept) + rounding**2 * kept <= error**2 * total
    if not bool(enough.any()):
        raise UsageError(f"An error of {error:g} cannot be reached: rounding the factors to the anchor's type alone adds {rounding:g}.")
    return int(enough.int().argmax()) + 1


def _factorise(differences: _Differences, rank: int, progress: ProgressSink) -> tuple[dict[str, Tensor], dict[str, tuple[float, float]]]:
    """The factors under their names in a package; and by matrix the squared norms of what they miss and of the difference."""
    factors: dict[str, Tensor] = {}
    errors: dict[str, tuple[float, float]] = {}
    for done, (name, dtype, delta) in enumerate(differences, 1):
        left, values, right = torch.linalg.svd(delta, full_matrices=False)
        root = values[:rank].sqrt()
        a, b = (root[:, None] * right[:rank]).to(dtype), (left[:, :rank] * root).to(dtype)
        missed = delta - b.float() @ a.float()
        errors[name] = (float(missed.double().square().sum()), float(delta.double().square().sum()))
        first, second = factor_names(name)
        factors |= {first: a.cpu().contiguous(), second: b.cpu().contiguous()}
        progress(_LABEL, done, len(differences.names), "matrices")
    return factors, errors
