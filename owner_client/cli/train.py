"""``elmgrove-owner train``: train an expert on private files. The training is imported here and nowhere else in the command line."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click

from common.console import TerminalProgress, emit, emit_json, format_bytes, table
from common.errors import UsageError
from common.formats.fields import check_name, parse_time, utc_now
from owner_client.cli.options import (
    GroupedCommand,
    GroupedOption,
    examples,
    home_option,
    json_option,
    passphrase_option,
    quiet_option,
)
from owner_client.cli.versions import ask_next_version
from owner_client.config import Home
from owner_client.daemon.anchors import find_anchor, local_anchors, verify_local_anchor
from owner_client.daemon.outbox import Terms, publish_package, require_free
from owner_client.daemon.review import Review
from owner_client.daemon.session import open_session
from owner_client.training.launch import environment_world
from owner_client.training.settings import TrainSettings

__all__ = ["train"]


def _setting(group: str, *names: str, **rest: Any) -> Callable[[click.decorators.FC], click.decorators.FC]:
    return click.option(*names, cls=GroupedOption, group=group, default=None, **rest)


_EXPERT, _LENGTH, _RATE, _OPTIMIZER, _LOSS = "Kind of expert", "Length and batches", "Learning rate", "Optimizer", "Losses"
_ROUTER, _HELD_OUT, _MACHINE = "Router and public text", "Held-out text", "Machine"

_SETTING_OPTIONS = (
    _setting(_EXPERT, "--rank", type=int, metavar="R", help="Low rank: the public weights plus a product of rank R. [default: full]"),
    _setting(_LENGTH, "--steps", type=int, metavar="N", help="Train for so many steps,"),
    _setting(_LENGTH, "--tokens", type=int, metavar="N", help="or for so many tokens,"),
    _setting(_LENGTH, "--epochs", type=float, metavar="N", help="or for so many passes over your text. [default: 2]"),
    _setting(_LENGTH, "--seq-len", type=int, metavar="TOKENS", help="Length of one sequence."),
    _setting(_LENGTH, "--batch-tokens", type=int, metavar="TOKENS", help="Tokens in one step, over all processes."),
    _setting(
        _LENGTH,
        "--micro-tokens",
        type=int,
        metavar="TOKENS",
        help="Tokens that one process computes at once; a step is the sum of several. [default: what the device takes]",
    ),
    _setting(_LENGTH, "--seed", type=int, metavar="N", help="Seed of everything random."),
    _setting(_RATE, "--lr", type=float, metavar="RATE", help="Peak learning rate. [default: by the optimizer and the anchor's width]"),
    _setting(_RATE, "--schedule", type=click.Choice(["cosine", "constant"]), help="How the learning rate goes on after the warm-up."),
    _setting(_RATE, "--warmup", type=int, metavar="STEPS", help="Steps of linear warm-up, at most a tenth of the run."),
    _setting(_RATE, "--min-lr-ratio", type=float, metavar="SHARE", help="Where the cosine ends, as a share of the peak."),
    _setting(_OPTIMIZER, "--optimizer", type=click.Choice(["adamw", "muon"]), help="Muon trains the expert's matrices, AdamW the rest."),
    _setting(_OPTIMIZER, "--beta1", type=float, metavar="BETA", help="AdamW's decay of the mean gradient,"),
    _setting(_OPTIMIZER, "--beta2", type=float, metavar="BETA", help="and of the mean square."),
    _setting(_OPTIMIZER, "--momentum", type=float, metavar="SHARE", help="Muon's momentum."),
    _setting(_OPTIMIZER, "--weight-decay", type=float, metavar="RATE", help="Decoupled weight decay."),
    _setting(_OPTIMIZER, "--clip", type=float, metavar="NORM", help="Largest norm of the whole gradient."),
    _setting(_LOSS, "--z-loss", type=float, metavar="FACTOR", help="Factor of the output head's squared log-sum-exp; the paper has 1e-5."),
    _setting(_LOSS, "--router-z-loss", type=float, metavar="FACTOR", help="Factor of the router's; the paper has 1e-3."),
    _setting(_ROUTER, "--router", type=click.Choice(["discriminant", "hidden-mean", "random"]), help="How each layer's router row starts."),
    _setting(_ROUTER, "--router-train/--router-freeze", "router_train", help="Train the rows with the expert, or keep them as they start."),
    _setting(_ROUTER, "--router-refit/--no-router-refit", "router_refit", help="Fit the rows once more to the trained expert's inputs."),
    _setting(_ROUTER, "--public-share", type=float, metavar="SHARE", help="Share of the anchor's public text mixed in, 0 to 1."),
    _setting(_HELD_OUT, "--heldout", type=float, metavar="SHARE", help="Share of your documents that is only measured on."),
    _setting(_HELD_OUT, "--eval-tokens", type=int, metavar="TOKENS", help="Tokens per text to measure on."),
    _setting(_HELD_OUT, "--eval-every", type=int, metavar="STEPS", help="Steps between measurements. [default: only at the end]"),
    _setting(
        _HELD_OUT,
        "--patience",
        type=int,
        metavar="N",
        help="Stop after N measurements without a better loss on your text, and keep the best step's expert.",
    ),
    _setting(_MACHINE, "--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute."),
    _setting(_MACHINE, "--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), help="Type to compute in."),
    _setting(_MACHINE, "--compile/--no-compile", "compile", help="Compile with torch.compile. [default: on a GPU, or in long runs]"),
    _setting(
        _MACHINE,
        "--checkpoint-layers/--keep-activations",
        "checkpoint_layers",
        help="Keep only the layers' inputs for the backward pass: far less memory, a third more work.",
    ),
    _setting(_MACHINE, "--checkpoint-every", type=int, metavar="STEPS", help="Steps between checkpoints of the run."),
)


def _with_settings(command: click.decorators.FC) -> click.decorators.FC:
    for option in reversed(_SETTING_OPTIONS):
        command = option(command)
    return command


@click.command(
    cls=GroupedCommand,
    epilog=examples(
        "elmgrove-owner train --data notes/ --name cardiology",
        "elmgrove-owner train --data 'reports/*.jsonl.gz' --text-field body --name radiology --epochs 3 --device cuda",
        "elmgrove-owner train --data notes/ --name cardiology --rank 64",
        "elmgrove-owner train --data notes/ --name cardiology --nproc 8 --eval-every 200 --patience 5",
        "torchrun --nproc-per-node 8 --no-python elmgrove-owner train --data notes/ --name cardiology",
        "elmgrove-owner train --data letters.parquet --name letters --licence CC-BY-4.0 --not-after 2028-01-01",
    ),
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
@click.option(
    "--nproc",
    cls=GroupedOption,
    group=_MACHINE,
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="Train with N processes on this machine, one per GPU, the model divided over them.",
)
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
    nproc: int,
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
    named = environment_world()
    if named is not None and named.rank > 0:  # under torchrun the first process does everything but its share of the training
        from owner_client.training.worker import follow, leave

        follow()
        leave()
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
        chosen.folder,
        list(data),
        run_dir=run,
        out_dir=folder,
        settings=settings,
        text_field=text_field,
        progress=sink,
        fresh=fresh,
        processes=nproc,
        quiet=quiet or as_json,
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
    _report(review, perplexity, None if result.cost is None else asdict(result.cost), as_json=as_json)


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


def _report(review: Review, perplexity: Mapping[str, Mapping[str, float]], cost: Mapping[str, float] | None, *, as_json: bool) -> None:
    manifest = review.manifest
    if as_json:
        summary = {"training": dict(manifest.training), "perplexity": perplexity, "cost": cost}
        emit_json({"package": str(review.folder), "expert": manifest.name, "version": manifest.version, **summary})
        return
    emit("Perplexity (for your eyes; it is not in the package):")
    models = sorted({model for row in perplexity.values() for model in row})
    rows = [(text, *(f"{row[model]:.2f}" if model in row else "-" for model in models)) for text, row in perplexity.items()]
    emit(table(("held-out text", *models), rows))
    if cost is not None:
        emit(
            f"\nTrained {cost['steps']:,} steps at {cost['tokens_per_s']:,.0f} tokens/s (MFU {cost['mfu']:.0%}); "
            f"{cost['wait_share']:.1%} of the time waiting for data; peak memory {format_bytes(cost['peak_memory_bytes'])}."
        )
    emit(f"\nExpert {manifest.name}, version {manifest.version}, {format_bytes(review.package_bytes)}, is in your outbox: {review.folder}")
    emit(f"Next: elmgrove-owner review {manifest.name}")
