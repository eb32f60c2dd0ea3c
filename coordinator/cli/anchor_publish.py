"""``elmgrove-coordinator anchor publish``: make a checkpoint the consortium's anchor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from common.console import TerminalProgress, emit
from common.progress import ProgressSink
from coordinator.cli.options import examples, home_option, opened, passphrase_option, quiet_option
from coordinator.config import Home

if TYPE_CHECKING:
    from coordinator.usecases.publish_anchor import MeasureMoments

__all__ = ["command"]


@click.command(
    name="publish",
    epilog=examples(
        "elmgrove-coordinator anchor publish anchor --name base --public-sample public.jsonl.gz",
        'elmgrove-coordinator anchor publish OLMo-2-1124-7B --name olmo2 --licence Apache-2.0 --provenance "allenai, November 2024"',
    ),
)
@click.argument("checkpoint", metavar="CHECKPOINT_DIR", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Name of the anchor: lower-case letters, digits and hyphens.")
@click.option("--public-sample", multiple=True, metavar="FILES", help="Public text that owners mix in and fit their routers against.")
@click.option("--sample-bytes", type=click.IntRange(min=0), default=16_000_000, show_default=True, help="Bytes of that text to take.")
@click.option("--text-field", default="text", show_default=True, help="Field or column that holds the text.")
@click.option("--licence", default="", help="Licence of the anchor.")
@click.option("--provenance", default="", help="Where its weights come from.")
@home_option
@passphrase_option
@quiet_option
def command(
    checkpoint: Path,
    name: str,
    public_sample: tuple[str, ...],
    sample_bytes: int,
    text_field: str,
    licence: str,
    provenance: str,
    home: Home,
    passphrase_file: Path | None,
    quiet: bool,
) -> None:
    """Publish CHECKPOINT_DIR, a Hugging Face Olmo2ForCausalLM folder with its tokenizer.

    With a public sample, the statistics that owners need to fit their routers are measured on it (this needs torch). Without one, owners
    cannot use the default router.
    """
    from coordinator.usecases.publish_anchor import publish_anchor

    progress = TerminalProgress(quiet=quiet)
    with opened(home, passphrase_file) as coordinator:
        published = publish_anchor(
            coordinator,
            checkpoint,
            name=name,
            licence=licence,
            provenance=provenance,
            sample=_texts(public_sample, text_field),
            sample_bytes=sample_bytes,
            measure=_measure(progress) if public_sample else None,
            progress=progress,
        )
    emit(f"Published anchor {name}: log entry {published.receipt.index}.")
    emit(f"Digest {published.digest}")


def _texts(sample: tuple[str, ...], text_field: str) -> Iterator[str]:
    from common.textdata.readers import expand, read_texts

    if sample:
        yield from read_texts(expand(sample), text_field=text_field)


def _measure(progress: ProgressSink) -> MeasureMoments:
    from common.formats.layout import PUBLIC_SAMPLE_NAME
    from common.textdata.readers import read_texts
    from coordinator.compute.moments import public_moments

    def measure(folder: Path, out: Path) -> None:
        public_moments(folder, read_texts([folder / PUBLIC_SAMPLE_NAME]), out=out, progress=progress)

    return measure
