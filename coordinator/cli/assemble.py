"""``elmgrove-coordinator assemble``: make a model."""

from __future__ import annotations

from pathlib import Path

import click

from common.console import TerminalProgress, emit, emit_json, table
from coordinator.cli.options import examples, home_option, json_option, opened, passphrase_option, quiet_option
from coordinator.config import Home

__all__ = ["command"]


@click.command(
    name="assemble",
    epilog=examples(
        "elmgrove-coordinator assemble models/all",
        "elmgrove-coordinator assemble models/two --include clinic,library",
        "elmgrove-coordinator assemble models/without --exclude clinic --top-k 2 --home consortium",
    ),
)
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--include", multiple=True, metavar="NAMES", help="Experts to take, comma-separated. [default: all in force]")
@click.option("--exclude", multiple=True, metavar="NAMES", help="Experts to leave out, comma-separated.")
@click.option(
    "--top-k", type=click.IntRange(min=1), help="Experts active for each token, the anchor's own counted. [default: all, at most 4]"
)
@click.option("--anchor", metavar="NAME", help="Name or digest of the anchor. [default: the newest]")
@click.option("--licence", default="", help="Licence of the assembled model, for its manifest.")
@home_option
@passphrase_option
@quiet_option
@json_option
def command(
    out: Path,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    top_k: int | None,
    anchor: str | None,
    licence: str,
    home: Home,
    passphrase_file: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Assemble OUT, an ordinary Hugging Face FlexOlmoForCausalLM folder, from the anchor and the experts in force.

    The folder is signed and the assembly is logged. The same choice gives the same bytes. It may run while 'serve' does.
    """
    from coordinator.usecases.assemble import assemble_model
    from coordinator.usecases.status import terms

    with opened(home, passphrase_file) as coordinator:
        model = assemble_model(
            coordinator,
            out,
            anchor=anchor,
            include=_names(include),
            exclude=_names(exclude),
            top_k=top_k,
            licence=licence,
            progress=TerminalProgress(quiet=quiet or as_json),
        )
        versions = coordinator.ledger.state().experts
        manifests = [versions[slot.name][slot.version - 1].manifest for slot in model.experts]
    if as_json:
        experts = [
            slot.model_dump(mode="json") | manifest.model_dump(mode="json", include={"licence", "permitted_uses", "not_after"})
            for slot, manifest in zip(model.experts, manifests, strict=True)
        ]
        emit_json({"digest": model.digest, "experts": experts, "top_k": model.top_k, "index": model.receipt.index})
        return
    rows = [["0", "(the anchor's own)", "-", "-"]]
    rows += [[str(slot.slot), slot.name, str(slot.version), slot.owner.rsplit("/", 1)[-1]] for slot in model.experts]
    emit(f"Assembled {out}: {len(rows)} experts, {model.top_k} active for each token.")
    emit(table(["slot", "expert", "version", "owner"], rows))
    for slot, manifest in zip(model.experts, manifests, strict=True):
        if said := terms(manifest):
            emit(f"{slot.name}: {said}")
    emit(f"Digest {model.digest}, log entry {model.receipt.index}.")


def _names(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for value in values for name in value.split(",") if name.strip()))
