"""``elmgrove-owner proxies``: name public documents that stand for private ones when the operator tunes a router."""

from __future__ import annotations

from pathlib import Path

import click

from common.console import TerminalProgress, emit, emit_json, table
from common.errors import AlreadyExistsError, NotFoundError
from common.files import storage_errors, write_atomic
from common.formats.fields import check_name
from common.formats.proxies import encode_proxies
from owner_client.cli.options import examples, home_option, json_option, notice, quiet_option
from owner_client.config import Home
from owner_client.daemon.anchors import find_anchor, local_anchors, verify_local_anchor
from owner_client.daemon.session import open_session

__all__ = ["proxies"]

_SHOWN = 5  # documents shown on the terminal
_WIDTH = 60  # characters of each


@click.command(
    epilog=examples(
        "elmgrove-owner proxies cardiology --data notes/ --out cardiology.proxies.jsonl",
        "elmgrove-owner proxies radiology --data 'reports/*.jsonl.gz' --text-field body --count 200 --out radiology.proxies.jsonl",
    )
)
@click.argument("expert", metavar="EXPERT")
@click.option(
    "--data",
    multiple=True,
    required=True,
    metavar="FILES",
    help="The private text the expert is trained on: file, folder or glob of .jsonl[.gz], .txt, .csv or .parquet; repeat for more.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The list to write; must not exist.")
@click.option("--count", type=int, default=500, show_default=True, metavar="N", help="Documents to name, at most.")
@click.option(
    "--candidates", type=int, metavar="N", help="The most relevant documents that diversity chooses from. [default: six times --count]"
)
@click.option("--text-field", default="text", show_default=True, metavar="FIELD", help="The field or column that holds the text.")
@click.option("--anchor", metavar="NAME|DIGEST", help="Which pulled anchor. [default: the newest]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to compute.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of which private documents are looked at.")
@home_option
@quiet_option
@json_option
def proxies(
    expert: str,
    data: tuple[str, ...],
    out: Path,
    count: int,
    candidates: int | None,
    text_field: str,
    anchor: str | None,
    device: str,
    seed: int,
    home: Home,
    quiet: bool,
    as_json: bool,
) -> None:
    """Choose public documents that resemble your private text and are unlike each other, and write their digests to a file.

    They come from the anchor's public sample. The operator can tune the router of a model on them, so that your expert is asked when it
    should be; you hand over the file yourself, and nothing is sent by this command. The file holds no text of yours, but which documents it
    names is a function of your text: it tells what your text is about.
    """
    name = check_name(expert, "The expert's name")
    _check_free(out)
    session = open_session(home)
    chosen = find_anchor(local_anchors(home, session.config.pinned.log_key), anchor)
    sink = TerminalProgress(quiet=quiet or as_json)
    verify_local_anchor(session, chosen, sink)
    from owner_client.training.proxies import ProxySettings, choose_proxies  # torch, only when something is computed

    settings = ProxySettings(count=count, candidates=candidates, seed=seed)
    found = choose_proxies(chosen.folder, list(data), settings, text_field=text_field, device=device, progress=sink)
    write_atomic(out, encode_proxies(name, chosen.digest, [proxy.sha256 for proxy in found]), exclusive=True)
    if as_json:
        documents = [{"sha256": proxy.sha256, "relevance": round(proxy.relevance, 4)} for proxy in found]
        emit_json({"expert": name, "anchor": chosen.digest, "file": str(out), "documents": documents})
        return
    if len(found) < count:
        notice(f"Only {len(found)} documents were chosen: the anchor's public sample has no more that would add anything.")
    emit(f"{len(found)} public documents stand for {name}; the first are (relevance is for your eyes and not in the file):")
    rows = [[f"{proxy.relevance:.2f}", " ".join(proxy.beginning.split())[:_WIDTH]] for proxy in found[:_SHOWN]]
    emit(table(["relevance", "document"], rows))
    emit(f"\nWritten: {out}. Look at it, then give it to the operator if you agree to what it tells.")


def _check_free(out: Path) -> None:
    with storage_errors(str(out)):
        if out.exists():
            raise AlreadyExistsError(f"{out} exists already; choose another name or remove it.")
        if not out.absolute().parent.is_dir():
            raise NotFoundError(f"There is no folder {out.parent} to write {out.name} into.")
