"""Anchor and expert folders of a few hundred MiB, quickly made: small finite values, real layouts, unsigned."""

from __future__ import annotations

import json
from pathlib import Path

from common.formats.layout import (
    PRIVACY_NAME,
    PUBLIC_SAMPLE_NAME,
    ROUTER_NAME,
    ffn_names,
    input_mean_name,
    input_second_moment_name,
    olmo2_shapes,
    part_name,
    router_row_name,
)
from common.formats.limits import MAX_PART_BYTES
from common.formats.safetensors import DTYPE_BYTES, encode_header
from tests.support.tiny_manifests import CONSORTIUM, anchor_manifest, expert_manifest, sha256
from tests.support.tiny_weights import TinyShape

MIB = 1024 * 1024
OWNER = f"elmgrove://{CONSORTIUM}/owners/anna"
SHAPE = TinyShape(hidden=1024, inner=4096, layers=5, heads=8, kv_heads=8, vocab=8192, dtype="BF16")
"""An expert of 120 MiB on an anchor of 190 MiB."""
LARGE = TinyShape(hidden=2048, inner=8192, layers=20, heads=16, kv_heads=16, vocab=8192, dtype="BF16")
"""An expert of 2.01 GB."""


def make_inputs(folder: Path, *, experts: int) -> list[Path]:
    """The anchor's folder, then each expert's."""
    anchor = folder / "anchor"
    anchor.mkdir(parents=True)
    shapes = olmo2_shapes(SHAPE.architecture, tied=False)
    _write(anchor / "model.safetensors", [(name, SHAPE.dtype, shape) for name, shape in shapes.items()], 1)
    _write(anchor / ROUTER_NAME, _router(SHAPE, moments=True), 0)
    (anchor / "config.json").write_text(json.dumps(SHAPE.config))
    (anchor / "tokenizer.json").write_text("{}")
    (anchor / PUBLIC_SAMPLE_NAME).write_bytes(b"")
    digest = sha256(anchor_manifest(anchor))
    return [anchor, *(make_expert(folder / f"expert-{number}", digest, number) for number in range(1, experts + 1))]


def make_expert(folder: Path, anchor: str, number: int, *, shape: TinyShape = SHAPE) -> Path:
    """An expert's folder, its manifest included, in parts of at most 512 MiB."""
    folder.mkdir(parents=True)
    shapes = olmo2_shapes(shape.architecture, tied=False)
    names = list(ffn_names(shape.layers))
    a_layer = 3 * shape.hidden * shape.inner * DTYPE_BYTES[shape.dtype]
    in_part = 3 * max(1, (MAX_PART_BYTES - MIB) // a_layer)
    for part in range(-(-len(names) // in_part)):
        chosen = names[part * in_part : (part + 1) * in_part]
        _write(folder / part_name(part), [(name, shape.dtype, shapes[name]) for name in chosen], number)
    _write(folder / ROUTER_NAME, _router(shape, moments=False), number)
    (folder / PRIVACY_NAME).write_text('{"schema": "elmgrove.privacy/v1"}')
    expert_manifest(folder, anchor, name=f"expert-{number}")
    return folder


def _router(shape: TinyShape, *, moments: bool) -> list[tuple[str, str, tuple[int, ...]]]:
    wide = shape.hidden
    tensors: list[tuple[str, str, tuple[int, ...]]] = []
    for layer in range(shape.layers):
        tensors.append((router_row_name(layer), shape.dtype, (1, wide)))
        if moments:
            tensors += [(input_mean_name(layer), "F32", (wide,)), (input_second_moment_name(layer), "F32", (wide, wide))]
    return tensors


def _write(path: Path, tensors: list[tuple[str, str, tuple[int, ...]]], seed: int) -> None:
    """Tensors of small finite values; zeros for seed 0, as an anchor's router row must be."""
    head, header = encode_header(tensors)
    pattern = bytes((seed * 31 + at * 7) % 61 for at in range(64 * 1024)) if seed else bytes(64 * 1024)
    with path.open("wb") as out:
        out.write(head)
        for span in header.tensors:
            size = span.end - span.start
            blocks, rest = divmod(size - size % DTYPE_BYTES[span.dtype], len(pattern))
            for _ in range(blocks):
                out.write(pattern)
            out.write(pattern[:rest])
