"""``elmgrove-audit``: the auditor's command line. Offline; needs the root certificate and the files, and trusts nothing else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from common.audit.logs import audit_log, majority_policy, open_log
from common.audit.models import audit_model
from common.audit.packages import audit_package
from common.audit.rebuild import audit_rebuild
from common.audit.receipts import audit_receipt
from common.audit.report import AuditReport
from common.console import TerminalProgress, emit, emit_json, run_cli
from common.errors import FormatError, UsageError
from common.formats.fields import parse_time
from common.formats.limits import MAX_DOCUMENT_BYTES
from common.trust.certificates import TrustRoot
from common.weights.digests import read_small

__all__ = ["audit", "main"]

_FOLDER = click.Path(path_type=Path)
_EXAMPLES = """
\b
Examples:
  elmgrove-audit package packages/law-v1 --root root.pem
  elmgrove-audit log coordinator/log --root root.pem --since checkpoint.last-month
  elmgrove-audit model model --log coordinator/log --root root.pem
  elmgrove-audit rebuild model --blobs coordinator/blobs --log coordinator/log --root root.pem --out again
  elmgrove-audit receipt receipts/experts/law-v1 --root root.pem --log coordinator/log
"""
_PACKAGE_EXAMPLES = """
\b
Examples:
  elmgrove-audit package packages/law-v1 --root root.pem
  elmgrove-audit package packages/law-v1 --root root.pem --log coordinator/log
  elmgrove-audit package packages/law-v1 --root root.pem --tensors
  elmgrove-audit package anchors/base --root root.pem --at 2026-01-31T08:00:00Z --json
"""
_LOG_EXAMPLES = """
\b
Examples:
  elmgrove-audit log coordinator/log --root root.pem
  elmgrove-audit log coordinator/log --root root.pem --since checkpoint.last-month --json
  elmgrove-audit log https://moe.example.org/log --root root.pem --policy owners.policy
"""
_POLICY_EXAMPLES = """
\b
Examples:
  elmgrove-audit policy coordinator/log --root root.pem > owners.policy
"""
_MODEL_EXAMPLES = """
\b
Examples:
  elmgrove-audit model model --log coordinator/log --root root.pem
  elmgrove-audit model model --log coordinator/log --root root.pem --json
"""
_RECEIPT_EXAMPLES = """
\b
Examples:
  elmgrove-audit receipt receipts/experts/law-v1 --root root.pem
  elmgrove-audit receipt receipts/experts/law-v1 --root root.pem --log coordinator/log --package packages/law-v1
  elmgrove-audit receipt law.tlog-proof --root root.pem --log coordinator/log --json
"""
_REBUILD_EXAMPLES = """
\b
Examples:
  elmgrove-audit rebuild model --blobs coordinator/blobs --log coordinator/log --root root.pem
  elmgrove-audit rebuild model --blobs packages --blobs anchors/base --log coordinator/log --root root.pem --out again
"""
_EXIT_CODES = """
\b
Exit codes: 0 it holds; 2 the command line is wrong; 17 a file or folder is missing;
20-24 malformed bytes or a folder with other files; 53 a value is not finite;
57 the bytes of an expert that left are gone; 61 signature; 62 certificate;
63 signer; 64 digest; 65 log; 66 log contradicts an earlier checkpoint;
67 not in the log; 68 revoked; 69 the model is not made of what it claims;
74 too few witnesses have cosigned; 41 the address does not answer.
"""


def _moment(_context: click.Context, _parameter: click.Parameter, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return parse_time(text)
    except FormatError as error:
        raise UsageError(f"--at: {error}") from error


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.option("--root", type=_FOLDER, required=True, metavar="ROOT.pem", help="The consortium's root certificate."),
        click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _read_root(path: Path) -> TrustRoot:
    return TrustRoot.from_pem(read_small(path, MAX_DOCUMENT_BYTES))


def _finish(report: AuditReport, *, as_json: bool) -> None:
    """Print the report, then fail with the first finding's exit code if there is one."""
    if as_json:
        emit_json(report.as_json())
    else:
        emit(report.as_text())
    report.raise_first()


@click.group(epilog=_EXAMPLES + _EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
def audit() -> None:
    """Check, offline and trusting nobody, what a consortium's packages, log and models claim.

    All you need is the root certificate, from a source you trust, and the files.
    """


@audit.command(epilog=_PACKAGE_EXAMPLES)
@click.argument("folder", type=_FOLDER, metavar="DIR")
@_common
@click.option("--log", type=_FOLDER, metavar="DIR", help="The log's files: also check that the log took it, and what became of it.")
@click.option(
    "--at",
    callback=_moment,
    metavar="TIME",
    help="Time of verification, as 2026-01-31T08:00:00Z; now by default. With --log: take the log as it stood then.",
)
@click.option(
    "--tensors",
    is_flag=True,
    help="Also check what admission checks: every tensor's own digest, and that every value is finite. About four times the time.",
)
def package(folder: Path, root: Path, log: Path | None, at: datetime | None, *, tensors: bool, as_json: bool) -> None:
    """Check an expert package or an anchor: its signature, and every file, tensor and byte."""
    report = audit_package(folder, _read_root(root), at=at, log=log, tensors=tensors, progress=TerminalProgress(quiet=as_json))
    _finish(report, as_json=as_json)


@audit.command(epilog=_LOG_EXAMPLES)
@click.argument("place", metavar="DIR|URL")
@_common
@click.option("--since", type=_FOLDER, metavar="CHECKPOINT", help="A checkpoint file you kept: the log must continue it.")
@click.option("--policy", type=_FOLDER, metavar="FILE", help="Who must have cosigned the checkpoint, as a C2SP tlog-policy.")
def log(place: str, root: Path, since: Path | None, policy: Path | None, *, as_json: bool) -> None:
    """Check a log: its signature, every hash, every document, every rule.

    The log is a folder, or the address of one that a web server (such as the coordinator's) shows: http:// or https://.
    If it contradicts CHECKPOINT, signed evidence that anybody can check is printed.
    """
    report = audit_log(place, _read_root(root), since=since, policy=policy)
    evidence = report.facts.get("contradiction")
    if isinstance(evidence, dict) and not as_json:
        emit_json(evidence)
    _finish(report, as_json=as_json)


@audit.command(epilog=_POLICY_EXAMPLES)
@click.argument("place", metavar="DIR|URL")
@click.option("--root", type=_FOLDER, required=True, metavar="ROOT.pem", help="The consortium's root certificate.")
def policy(place: str, root: Path) -> None:
    """Print a policy for 'log --policy': a majority of the owners whose clients witness this log.

    The log is checked first. Read the policy before you keep it: it says whom you believe.
    """
    emit(majority_policy(open_log(place, _read_root(root)).state).rstrip("\n"))


@audit.command(epilog=_MODEL_EXAMPLES)
@click.argument("folder", type=_FOLDER, metavar="DIR")
@_common
@click.option("--log", type=_FOLDER, required=True, metavar="DIR", help="The log's files.")
@click.option("--at", callback=_moment, metavar="TIME", help="Take the log as it stood then, as 2026-01-31T08:00:00Z.")
def model(folder: Path, root: Path, log: Path, at: datetime | None, *, as_json: bool) -> None:
    """Trace every tensor and router row of an assembled model to the anchor or to one signed expert."""
    report = audit_model(folder, _read_root(root), log=log, at=at, progress=TerminalProgress(quiet=as_json))
    _finish(report, as_json=as_json)


@audit.command(epilog=_REBUILD_EXAMPLES)
@click.argument("folder", type=_FOLDER, metavar="DIR")
@_common
@click.option("--log", type=_FOLDER, required=True, metavar="DIR", help="The log's files.")
@click.option(
    "--blobs",
    type=_FOLDER,
    required=True,
    multiple=True,
    metavar="DIR",
    help="A coordinator's blobs, or a folder of packages and the anchor; may be given again.",
)
@click.option("--out", type=_FOLDER, metavar="DIR", help="Write the rebuilt model here; by default it is only compared.")
def rebuild(folder: Path, root: Path, log: Path, blobs: tuple[Path, ...], out: Path | None, *, as_json: bool) -> None:
    """Assemble a model again from its parts, and compare it with the log and the model.

    Without --out nothing is written, whatever the model's size. The rows of a tuned router cannot be rebuilt; everything else is.
    """
    progress = TerminalProgress(quiet=as_json)
    _finish(audit_rebuild(folder, _read_root(root), log=log, blobs=blobs, out=out, progress=progress), as_json=as_json)


@audit.command(epilog=_RECEIPT_EXAMPLES)
@click.argument("path", type=_FOLDER, metavar="FILE|DIR")
@_common
@click.option("--log", type=_FOLDER, metavar="DIR", help="The log's files: also check that today's log continues what the receipt shows.")
@click.option("--package", type=_FOLDER, metavar="DIR", help="The package or anchor it is for: also check every byte of it.")
def receipt(path: Path, root: Path, log: Path | None, package: Path | None, *, as_json: bool) -> None:
    """Check a receipt that an owner kept: what the log promised, and which expert it stands for.

    DIR is a receipt's folder from an owner's receipts/; FILE is the .tlog-proof of one, which needs --log. Without --log, the
    log's key is taken from the founding's receipt beside it.
    """
    report = audit_receipt(path, _read_root(root), log=log, package=package, progress=TerminalProgress(quiet=as_json))
    _finish(report, as_json=as_json)


def main() -> None:
    """Entry point of ``elmgrove-audit``."""
    run_cli(audit, name="elmgrove-audit")
