"""``elmgrove-coordinator generate``: text from a model."""

from __future__ import annotations

from pathlib import Path

import click

from coordinator.cli.options import examples

__all__ = ["command"]


@click.command(
    name="generate",
    epilog=examples(
        'elmgrove-coordinator generate models/all --prompt "The river"',
        'elmgrove-coordinator generate models/all --prompt "The river" --exclude clinic --temperature 0.8 --top-p 0.95 --seed 1',
    ),
)
@click.argument("model", metavar="MODEL", type=click.Path(path_type=Path))
@click.option("--prompt", required=True, help="Text to go on from.")
@click.option(
    "--exclude", multiple=True, metavar="EXPERT", help="Leave this expert out, as if the model had been made without it; repeatable."
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Tokens at most.")
@click.option("--temperature", type=click.FloatRange(min=0.0), default=0.0, show_default=True, help="0 takes the likeliest token.")
@click.option("--top-p", type=click.FloatRange(0.0, 1.0), default=1.0, show_default=True, help="Share of the probability to draw from.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the draw.")
@click.option("--device", default="cpu", show_default=True, help="Where to compute: cpu or cuda.")
def command(
    model: Path,
    prompt: str,
    exclude: tuple[str, ...],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    device: str,
) -> None:
    """Continue a prompt with MODEL, an assembled model or a dense one."""
    from coordinator.compute.generate import generate_text

    names = tuple(name.strip() for value in exclude for name in value.split(",") if name.strip())
    pieces = generate_text(
        model,
        prompt,
        exclude=names,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        device=device,
    )
    click.echo(prompt, nl=False)
    for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()
