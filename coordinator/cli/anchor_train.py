"""``elmgrove-coordinator anchor train``: a small anchor from public text."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from common.console import TerminalProgress, emit, format_seconds
from common.errors import UsageError
from coordinator.cli.options import examples, quiet_option

__all__ = ["command"]


@click.command(
    name="train",
    epilog=examples(
        "elmgrove-coordinator anchor train --data public.jsonl.gz --preset nano --out anchor",
        "elmgrove-coordinator anchor train --data texts/ --data more.parquet --preset small --tokens 200000000 --seed 1 --out anchor",
    ),
)
@click.option("--data", multiple=True, required=True, metavar="FILES", help="Files, folders or globs of .jsonl[.gz], .txt, .csv, .parquet.")
@click.option("--preset", default="nano", show_default=True, help="Size: nano, tiny, small, base, 7b.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the checkpoint; must not exist.")
@click.option("--text-field", default="text", show_default=True, help="Field or column that holds the text.")
@click.option("--vocab-size", type=click.IntRange(min=300), help="Tokens in the vocabulary. [default: the preset's]")
@click.option("--tokens", type=click.IntRange(min=1), help="Tokens to train on. [default: the preset's]")
@click.option("--steps", type=click.IntRange(min=1), help="Optimizer steps, instead of --tokens.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of weights and order. [default: the preset's]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute. [default: auto]")
@quiet_option
def command(
    data: tuple[str, ...],
    preset: str,
    out: Path,
    text_field: str,
    vocab_size: int | None,
    quiet: bool,
    **settings: Any,
) -> None:
    """Train a small OLMo-2-style model with its own tokenizer from public text.

    Ctrl-C keeps what was done; the same command goes on from there. The result is an ordinary Hugging Face folder.
    """
    from coordinator.compute.anchor_training import train_anchor
    from coordinator.compute.presets import preset as find_preset

    chosen = find_preset(preset)
    result = train_anchor(
        data,
        out_dir=out,
        preset=chosen,
        vocab_size=vocab_size,
        settings=dataclasses.replace(chosen.settings, **_changes(chosen.settings.batch_tokens, **settings)),
        text_field=text_field,
        progress=TerminalProgress(quiet=quiet),
    )
    emit(f"Trained {out}: {result.parameters:,} parameters, {result.tokens:,} tokens ({result.epochs:.2f} epochs).")
    emit(f"Loss {result.loss:.3f} after {result.steps:,} steps in {format_seconds(result.seconds)}.")
    emit(f"Next: elmgrove-coordinator anchor publish {out} --name NAME --public-sample FILES --home DIR")


def _changes(batch_tokens: int, *, tokens: int | None, steps: int | None, seed: int | None, device: str | None) -> dict[str, Any]:
    """What the options change in the preset's settings."""
    if tokens is not None and steps is not None:
        raise UsageError("Give --tokens or --steps, not both.")
    wanted = {"tokens": steps * batch_tokens if steps is not None else tokens, "seed": seed, "device": device}
    return {key: value for key, value in wanted.items() if value is not None}
