"""``elmgrove-coordinator``: the operator's command line; a command's module is imported when it is called."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Final

import click

from common.commands import CommandTable, LazyGroup
from common.console import run_cli
from coordinator.cli.options import examples

__all__ = ["ANCHOR_COMMANDS", "COMMANDS", "anchor_group", "cli", "main"]

PROGRAM: Final = "elmgrove-coordinator"

COMMANDS: Final[CommandTable] = {
    "init": ("coordinator.cli.init:command", "Found a consortium: keys, certificates, log."),
    "anchor": ("coordinator.cli.main:anchor_group", "Train and publish the public anchor model."),
    "invite": ("coordinator.cli.invite:command", "Print the invitation string for one owner."),
    "owners": ("coordinator.cli.owners:group", "List owners, or revoke one."),
    "keys": ("coordinator.cli.keys:group", "List, renew or replace the operator's and the server's own keys."),
    "serve": ("coordinator.cli.serve:command", "Answer owners until stopped."),
    "experts": ("coordinator.cli.experts:command", "List experts and whether they are in force."),
    "anchors": ("coordinator.cli.anchors:command", "List published anchors."),
    "log": ("coordinator.cli.log:command", "List the transparency log's entries."),
    "fsck": ("coordinator.cli.fsck:command", "Check the log, the stored files and the database."),
    "gc": ("coordinator.cli.gc:command", "Delete the weights of experts that left, after the retention time."),
    "assemble": ("coordinator.cli.assemble:command", "Make one mixture-of-experts model from the experts in force."),
    "tune-router": ("coordinator.cli.tune_router:command", "Train an assembled model's router on public text."),
    "evaluate": ("coordinator.cli.evaluate:command", "Measure models on text, side by side."),
    "lm-eval": ("coordinator.cli.lm_eval:command", "Run tasks of the lm-evaluation-harness on a model, offline."),
    "generate": ("coordinator.cli.generate:command", "Continue a prompt, leaving out experts if asked."),
}
ANCHOR_COMMANDS: Final[CommandTable] = {
    "train": ("coordinator.cli.anchor_train:command", "Train a small anchor from public text."),
    "publish": ("coordinator.cli.anchor_publish:command", "Sign and log a checkpoint so that owners can pull it."),
}


_EXTRAS: Final[Mapping[str, str]] = {
    "grpc": "coordinator",
    "google": "coordinator",
    "sqlalchemy": "coordinator",
    "torch": "train",
    "numpy": "coordinator",
    "safetensors": "train",
    "tokenizers": "train",
}
"""Module to the extra of this distribution that installs it."""

_SETTINGS: Final = {"help_option_names": ["-h", "--help"]}


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    extras=_EXTRAS,
    context_settings=_SETTINGS,
    epilog=examples(
        "elmgrove-coordinator init consortium --name rivers --host coordinator.example.org",
        "elmgrove-coordinator anchor publish OLMo-2-anchor --name base --public-sample public.jsonl.gz --home consortium",
        "elmgrove-coordinator invite clinic --home consortium",
        "elmgrove-coordinator serve --home consortium",
        "elmgrove-coordinator assemble models/all --home consortium",
    ),
)
@click.option("-v", "--verbose", is_flag=True, help="Say more about what goes on, and show the cause of errors.")
def cli(verbose: bool) -> None:
    """Found and run a consortium that builds one mixture-of-experts model out of many owners' private text.

    The coordinator publishes a public anchor model, admits owners, takes their signed experts, and keeps a transparency log of it all.
    It never sees an owner's text.
    """
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


@click.group(
    name="anchor",
    cls=LazyGroup,
    table=ANCHOR_COMMANDS,
    extras=_EXTRAS,
    context_settings=_SETTINGS,
    epilog=examples(
        "elmgrove-coordinator anchor train --data public.jsonl.gz --preset nano --out anchor",
        "elmgrove-coordinator anchor publish anchor --name base --public-sample public.jsonl.gz",
    ),
)
def anchor_group() -> None:
    """Train and publish the public anchor model that all experts start from."""


def main() -> None:
    """Run ``elmgrove-coordinator`` and end the process with the documented exit code."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # refused handshakes and taken ports are ours to report
    run_cli(cli, name=PROGRAM)


if __name__ == "__main__":
    main()
