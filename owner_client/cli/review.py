"""``elmgrove-owner review``: everything that would leave with a package, in plain words."""

from __future__ import annotations

import click

from common.console import TerminalProgress, emit, emit_json, format_bytes, table
from common.formats.manifest import SIGNATURE_NAME
from owner_client.cli.options import examples, home_option, json_option
from owner_client.config import Home
from owner_client.daemon.review import NOT_INCLUDED, Review, find_package, plain_manifest, review_package

__all__ = ["review", "show_review"]


@click.command(epilog=examples("elmgrove-owner review cardiology", "elmgrove-owner review ./outbox/cardiology-v2 --json"))
@click.argument("package")
@home_option
@json_option
def review(package: str, home: Home, as_json: bool) -> None:
    """Show every file, byte and statement that pushing PACKAGE would send.

    PACKAGE is the name of an expert in your outbox or the path of a package folder. All of it is read and checked; nothing is
    sent and no key is opened.
    """
    found = review_package(find_package(home, package), progress=TerminalProgress(quiet=as_json))
    if as_json:
        emit_json(found.as_json())
    else:
        show_review(found)
        emit()
        emit("Looking sent nothing. If you agree: elmgrove-owner push " + package)


def show_review(found: Review) -> None:
    """Print a review for a person."""
    emit(f"Package {found.folder}")
    emit(f"Digest  {found.package.digest}")
    emit("\nFiles that would leave:")
    rows = [(file.name, f"{file.size:,}", file.sha256, file.purpose) for file in found.files]
    signing = "your signature over all of them" if found.signed else "your signature, added by push (size estimated)"
    rows.append((SIGNATURE_NAME, f"{found.signature_bytes:,}", "", signing))
    emit(table(("file", "bytes", "sha256", "what it is"), rows))
    total = found.package_bytes + found.signature_bytes
    emit(f"\nIn all {'' if found.signed else 'about '}{total:,} bytes ({format_bytes(total)}), and the messages that carry them.")
    emit("\nWhat the manifest says:")
    _show_pairs(plain_manifest(found.manifest))
    emit("\nWhat the privacy report says:")
    _show_pairs([(key, str(value)) for key, value in found.privacy.items()] or [("nothing", "there is no privacy report")])
    notes = [(f"{file.name}: {key}", value) for file in found.files for key, value in file.notes.items()]
    emit("\nNotes in the headers of weights files:")
    _show_pairs(notes or [("none", "")])
    emit("\nWhat is not in it:")
    for line in NOT_INCLUDED:
        emit(f"  - {line}")


def _show_pairs(pairs: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in pairs)
    for name, text in pairs:
        emit(f"  {name.ljust(width)}  {_one_line(text)}")


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
