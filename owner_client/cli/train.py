"""``elmgrove-owner train``: train an expert on private files. The training is imported here and nowhere else in the command line."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click

from common.console import TerminalProgress, emit, emit_json, format_bytes, table
from common.errors import UsageError
from common.formats.fields import check_name, parse_time, utc_now
from owner_client.cli.options import examples, home_option, json_option, passphrase_option, quiet_option
from owner_client.cli.versions import ask_next_version
from owner_client.config import Home
from owner_client.daemon.anchors import find_anchor, local_anchors, verify_local_anchor
from owner_client.daemon.outbox import Terms, publish_package, require_free
from owner_client.daemon.review import Review
from owner_client.daemon.session import open_session
from owner_client.training.settings import TrainSettings

__all__ = ["train"]

_SETTING_OPTIONS = (
    click.option("--router", type=click.Choice(["discriminant", "hidden-mean", "random"]), help="How each layer's router row starts."),
    click.option(
        "--router-train/--router-freeze", "router_train", default=None, help="Train the rows with the expert, or keep them as they start."
    ),
    click.option(
        "--rank", type=int, metavar="R", help="Train a low-rank expert: the public weights plus a product of rank R. [default: full]"
    ),
    click.option("--public-share", type=float, metavar="SHARE", help="Share of the anchor's public text mixed in, 0 to 1."),
    click.option("--steps", type=int, metavar="N", help="Train for so many steps,"),
    click.option("--tokens", type=int, metavar="N", help="or for so many tokens,"),
    click.option("--epochs", type=float, metavar="N", help="or for so many passes over your text."),
    click.option("--seq-len", type=int, metavar="TOKENS", help="Length of one sequence."),
    click.option("--batch-tokens", type=int, metavar="TOKENS", help="Tokens in one step."),
    click.option("--lr", type=float, metavar="RATE", help="Peak learning rate."),
    click.option("--seed", type=int, metavar="N", help="Seed of everything random."),
    click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), help="Type to compute in."),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute."),
    click.option("--compile/--no-compile", "compile", default=None, help="Compile the model first: slower to start, faster to run."),
    click.option("--checkpoint-every", type=int, metavar="STEPS", help="Steps between checkpoints of the run."),
)


def _with_settings(command: click.decorators.FC) -> click.decorators.FC:
    for option in reversed(_SETTING_OPTIONS):
        command = option(command)
    return command


@click.command(
    epilog=examples(
        "elmgrove-owner train --data notes/ --name cardiology",
        "elmgrove-owner train --data 'reports/*.jsonl.gz' --text-field body --name radiology --epochs 3 --device cuda",
        "elmgrove-owner train --data notes/ --name cardiology --rank 64",
        "elmgrove-owner train --data letters.parquet --name letters --licence CC-BY-4.0 --not-after 2028-01-01",
    )
)
@click.option(
    "--data",
    multiple=True,
    required=True,
    metavar="FILES",
    help="File, folder or glob of .jsonl[.gz], .txt, .csv or .parquet; repeat for more.",
)
@click.option("--name", required=True, metavar="EXPERT", help="Name of the expert; the same name again makes its next version.")
@click.option("--text-field", default="text", show_default=True, metavar="FIELD", help="The field or column that holds the text.")
@click.option("--anchor", metavar="NAME|DIGEST", help="Which pulled anchor. [default: the newest]")
@_with_settings
@click.option("--licence", default="", metavar="TEXT", help="Licence of the expert, written into its manifest.")
@click.option(
    "--permitted-use", "permitted_uses", multiple=True, metavar="TEXT", help="A use you permit, written into the manifest; repeat for more."
)
@click.option("--not-after", metavar="DATE", help="Last day the expert may be used, such as 2028-01-31. [default: until you withdraw it]")
@click.option("--fresh", is_flag=True, help="Start over: forget an interrupted run, and replace a package of this version that waits.")
@click.option("--offline", is_flag=True, help="Do not ask the coordinator which version is next; go by the receipts in this home.")
@home_option
@passphrase_option
@quiet_option
@json_option
def train(
    data: tuple[str, ...],
    name: str,
    text_field: str,
    anchor: str | None,
    licence: str,
    permitted_uses: tuple[str, ...],
    not_after: str | None,
    fresh: bool,
    offline: bool,
    home: Home,
    passphrase_file: Path | None,
    quiet: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Train an expert on private files and lay the package into your outbox. Nothing leaves this machine.

    The expert starts as a copy of the anchor's feed-forward weights; everything else of the anchor stays as it is. A run that is
    interrupted goes on where it stopped when you run the same command again.
    """
    settings = TrainSettings(**{key: value for key, value in given.items() if value is not None})
    terms = Terms(licence, permitted_uses, _not_after(not_after))
    expert = check_name(name, "The expert's name")
    session = open_session(home)
    chosen = find_anchor(local_anchors(home, session.config.pinned.log_key), anchor)
    sink = TerminalProgress(quiet=quiet or as_json)
    verify_local_anchor(session, chosen, sink)
    following = ask_next_version(session, expert, offline=offline, passphrase_file=passphrase_file)
    require_free(home, expert, following.version, fresh=fresh)
    run, folder = _run_folders(home, expert, following.version)
    from owner_client.training.package import package_kind
    from owner_client.training.run import train_expert  # torch, only when something is trained

    result = train_expert(
        chosen.folder, list(data), run_dir=run, out_dir=folder, settings=settings, text_field=text_field, progress=sink, fresh=fresh
    )
    review = publish_package(
        home,
        session.config,
        folder,
        expert=expert,
        following=following,
        anchor=chosen.digest,
        kind=package_kind(folder, chosen.folder, progress=sink),
        training=result.summary,
        terms=terms,
        progress=sink,
    )
    perplexity = {text: {model: measured.value for model, measured in row.items()} for text, row in result.perplexity.items()}
    _report(review, perplexity, as_json=as_json)


def _run_folders(home: Home, expert: str, version: int) -> tuple[Path, Path]:
    """Where the run keeps its state, and where its files wait for their manifest."""
    run = home.run(expert, version)
    folder = run.with_name(run.name + ".package")
    shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed before packing; it is made again from the run
    return run, folder


def _not_after(text: str | None) -> datetime | None:
    if text is None:
        return None
    moment = parse_time(text if "T" in text else f"{text}T23:59:59Z")
    if moment <= utc_now() + timedelta(minutes=1):
        raise UsageError(f"--not-after {text} is not in the future.")
    return moment


def _report(review: Review, perplexity: Mapping[str, Mapping[str, float]], *, as_json: bool) -> None:
    manifest = review.manifest
    if as_json:
        summary = {"training": dict(manifest.training), "perplexity": perplexity}
        emit_json({"package": str(review.folder), "expert": manifest.name, "version": manifest.version, **summary})
        return
    emit("Perplexity (for your eyes; it is not in the package):")
    models = sorted({model for row in perplexity.values() for model in row})
    rows = [(text, *(f"{row[model]:.2f}" if model in row else "-" for model in models)) for text, row in perplexity.items()]
    emit(table(("held-out text", *models), rows))
    emit(f"\nExpert {manifest.name}, version {manifest.version}, {format_bytes(review.package_bytes)}, is in your outbox: {review.folder}")
    emit(f"Next: elmgrove-owner review {manifest.name}")
