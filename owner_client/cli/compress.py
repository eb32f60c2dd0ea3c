"""``elmgrove-owner compress``: cut a full expert down to a low-rank one. Nothing leaves this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from common.console import TerminalProgress, emit, emit_json, format_bytes, table
from common.errors import UsageError
from common.formats.fields import check_name
from common.formats.layout import FFN_MATRICES, dense_ffn_name
from owner_client.cli.options import examples, home_option, json_option, passphrase_option, quiet_option
from owner_client.cli.versions import ask_next_version
from owner_client.config import Home
from owner_client.daemon.anchors import find_anchor, local_anchors, verify_local_anchor
from owner_client.daemon.compression import compression_folder, find_full, laid_in_place, terms_of
from owner_client.daemon.outbox import publish_package
from owner_client.daemon.review import Review
from owner_client.daemon.session import open_session

if TYPE_CHECKING:
    from owner_client.training.compress import Compressed

__all__ = ["compress"]


@click.command(
    epilog=examples(
        "elmgrove-owner compress cardiology --rank 64",
        "elmgrove-owner compress cardiology --error 0.2 --name cardiology-small",
        "elmgrove-owner compress ./outbox/cardiology-v2 --rank 32 --json",
    )
)
@click.argument("package")
@click.option("--rank", type=int, metavar="R", help="Keep so many singular values of every matrix,")
@click.option("--error", type=float, metavar="E", help="or as many as leave a relative error of at most E, 0 to 1, over all matrices.")
@click.option("--name", metavar="EXPERT", help="Make it an expert of its own. [default: it takes the place of the full one]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to compute.")
@click.option("--fresh", is_flag=True, help="Replace another package of this version that waits in the outbox.")
@click.option("--offline", is_flag=True, help="Do not ask the coordinator which version is next; go by the receipts in this home.")
@home_option
@passphrase_option
@quiet_option
@json_option
def compress(
    package: str,
    rank: int | None,
    error: float | None,
    name: str | None,
    device: Any,
    fresh: bool,
    offline: bool,
    home: Home,
    passphrase_file: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Cut a full expert down to a low-rank one, which is smaller to upload and to keep.

    PACKAGE is the name of an expert in your outbox or the path of a package folder. The low-rank package takes the place of the full
    one, which is kept under runs/ so that you can compress it again with another rank; if the full one was pushed already, or you give
    another --name, it lies beside it as the next version or a new expert.
    """
    if (rank is None) == (error is None):
        raise UsageError("Give either --rank or --error.")
    session = open_session(home)
    sink = TerminalProgress(quiet=quiet or as_json)
    full = find_full(session, package, sink)
    expert = full.manifest.name if name is None else check_name(name, "The expert's name")
    following = ask_next_version(session, expert, offline=offline, passphrase_file=passphrase_file)
    anchor = find_anchor(local_anchors(home, session.config.pinned.log_key), full.manifest.anchor)
    verify_local_anchor(session, anchor, sink)
    folder = compression_folder(home, expert, following.version)
    with laid_in_place(home, full, expert, following.version, fresh=fresh) as make_room:
        from owner_client.training.compress import compress_expert  # torch, only when something is computed
        from owner_client.training.package import package_kind

        made = compress_expert(full.folder, anchor.folder, folder, rank=rank, error=error, device=device, progress=sink)
        kind = package_kind(folder, anchor.folder, progress=sink)
        make_room()
        review = publish_package(
            home,
            session.config,
            folder,
            expert=expert,
            following=following,
            anchor=anchor.digest,
            kind=kind,
            training={**full.manifest.training, "compression": "svd", "compression_error": f"{made.error:.4g}"},
            terms=terms_of(full.manifest),
            progress=sink,
        )
    _report(review, made, sum(entry.size for entry in full.manifest.files), as_json=as_json)


def _report(review: Review, made: Compressed, full_bytes: int, *, as_json: bool) -> None:
    manifest, size = review.manifest, sum(entry.size for entry in review.manifest.files)
    if as_json:
        figures = {"rank": made.rank, "error": made.error, "matrices": dict(made.matrices), "bytes": size, "full_bytes": full_bytes}
        emit_json({"package": str(review.folder), "expert": manifest.name, "version": manifest.version, **figures})
        return
    layers = len(made.matrices) // len(FFN_MATRICES)
    rows = [[str(layer), *(f"{made.matrices[dense_ffn_name(layer, m)]:.4f}" for m in FFN_MATRICES)] for layer in range(layers)]
    emit("What the factors miss of each matrix's difference to the anchor's, relative (Frobenius norm):")
    emit(table(["layer", *FFN_MATRICES], rows))
    emit(f"\nRank {made.rank}, relative error {made.error:.4f} over all.")
    emit(f"{format_bytes(size)} in place of {format_bytes(full_bytes)}: {full_bytes / size:.1f} times smaller.")
    emit(f"\nExpert {manifest.name}, version {manifest.version}, is in your outbox: {review.folder}")
    emit(f"Next: elmgrove-owner review {manifest.name}")
