"""Where an owner stands: what lies in the home, joined with what the coordinator says, and where the two do not agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from common.formats.fields import format_time, utc_now
from common.rpc.v1 import elmgrove_pb2 as pb
from owner_client.config import Home
from owner_client.daemon.anchors import LocalAnchor, local_anchors
from owner_client.daemon.review import outbox_packages
from owner_client.daemon.session import SIGNING_CERTIFICATE, TRANSPORT_CERTIFICATE, Session
from owner_client.daemon.sync import last_checkpoint
from owner_client.daemon.versions import logged_versions
from owner_client.daemon.watch import LoggedCertificate, certificates_in_log, unknown_certificates

__all__ = ["ExpertLine", "OwnerStatus", "gather_status", "withdrawn_experts"]

_RENEWAL_DAYS = 60


@dataclass(frozen=True, slots=True)
class ExpertLine:
    """One version of an expert. ``state`` is trained, uploading, pushed, in-force, superseded, withdrawn, expired, revoked or unknown."""

    name: str
    version: int
    state: str
    index: int | None
    detail: str


@dataclass(frozen=True, slots=True)
class OwnerStatus:
    """All that ``status`` shows; ``remote`` is ``None`` when the coordinator was not asked or did not answer."""

    session: Session
    certificates: Mapping[str, datetime]
    anchors: tuple[LocalAnchor, ...]
    experts: tuple[ExpertLine, ...]
    log_size: int
    remote: pb.StatusReply | None
    warnings: tuple[str, ...]
    logged: tuple[LoggedCertificate, ...]
    """Certificates in our name, as the log was read last."""
    unknown: tuple[LoggedCertificate, ...]
    """Those among them that we never asked for."""

    def as_json(self) -> dict[str, Any]:
        """The status for a script."""
        config = self.session.config
        pulled = {anchor.digest for anchor in self.anchors}
        published = self.remote.anchors if self.remote is not None else ()
        return {
            "home": str(self.session.home.path),
            "consortium": config.consortium,
            "owner": config.owner,
            "identity": config.uri,
            "coordinator": {"host": config.coordinator.host, "port": config.coordinator.port, "answers": self.remote is not None},
            "certificates": {purpose: format_time(end) for purpose, end in self.certificates.items()},
            "certificates_in_log": [each.model_dump(mode="json") for each in self.logged],
            "unknown_certificates": [each.model_dump(mode="json") for each in self.unknown],
            "anchors": [{"name": a.name, "digest": a.digest, "log_index": a.index, "folder": str(a.folder)} for a in self.anchors],
            "anchors_to_pull": [{"name": a.name, "digest": a.digest, "size": a.size} for a in published if a.digest not in pulled],
            "experts": [{"name": e.name, "version": e.version, "state": e.state, "log_index": e.index} for e in self.experts],
            "models": [
                {"manifest": m.manifest, "log_index": m.index, "experts": list(m.experts)}
                for m in (self.remote.models if self.remote is not None else ())
            ],
            "log": {"size": self.log_size, "key": config.pinned.log_key},
            "warnings": list(self.warnings),
        }


def withdrawn_experts(home: Home) -> frozenset[str]:
    """Names of the experts we hold a withdrawal receipt for."""
    folder = home.receipts / "withdrawn"
    return frozenset(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else frozenset()


def gather_status(session: Session, remote: pb.StatusReply | None) -> OwnerStatus:
    """Join the home with the coordinator's answer (``None``: it was not asked or did not answer).

    Raises:
        LogError, FormatError, DigestError: something kept in the home was changed.
    """
    certificates = {
        purpose: session.certificate(name).not_valid_after_utc
        for purpose, name in (("signing", SIGNING_CERTIFICATE), ("transport", TRANSPORT_CERTIFICATE))
    }
    seen = last_checkpoint(session.home, session.config.pinned.log_key)
    experts = _experts(session, remote)
    return OwnerStatus(
        session=session,
        certificates=certificates,
        anchors=local_anchors(session.home, session.config.pinned.log_key),
        experts=experts,
        log_size=seen.checkpoint.size if seen else 0,
        remote=remote,
        warnings=(*_certificate_warnings(certificates), *_expert_warnings(experts)),
        logged=certificates_in_log(session.home),
        unknown=unknown_certificates(session),
    )


def _experts(session: Session, remote: pb.StatusReply | None) -> tuple[ExpertLine, ...]:
    """Later sources know more: outbox, then our receipts, then the coordinator."""
    lines = {
        (name, version): ExpertLine(name, version, "trained", None, "in the outbox") for name, version in outbox_packages(session.home)
    }
    for held in logged_versions(session.home, session.config, session.root):
        lines[held.expert, held.version] = ExpertLine(
            held.expert, held.version, "pushed" if remote is None else "unknown", held.index, "receipt held"
        )
    if remote is None:
        _infer_states(lines, withdrawn_experts(session.home))
    for upload in remote.uploads if remote is not None else ():
        share = f"{100 * upload.received // max(1, upload.size)}% has arrived; push again to go on"
        lines[upload.name, upload.version] = ExpertLine(upload.name, upload.version, "uploading", None, share)
    for expert in remote.experts if remote is not None else ():
        when = f"accepted {datetime.fromtimestamp(expert.accepted_at, UTC):%Y-%m-%d}"
        lines[expert.name, expert.version] = ExpertLine(expert.name, expert.version, expert.status, expert.index, when)
    return tuple(lines[key] for key in sorted(lines))


def _infer_states(lines: dict[tuple[str, int], ExpertLine], withdrawn: frozenset[str]) -> None:
    """What our receipts alone say: a later logged version supersedes an earlier one, and a withdrawal ends the last."""
    newest = {line.name: line.version for _, line in sorted(lines.items()) if line.state == "pushed"}
    for key, line in lines.items():
        if line.state == "pushed" and line.version < newest[line.name]:
            lines[key] = replace(line, state="superseded")
        elif line.state == "pushed" and line.name in withdrawn:
            lines[key] = replace(line, state="withdrawn")


def _certificate_warnings(ends: Mapping[str, datetime]) -> list[str]:
    now = utc_now()
    warnings = []
    for purpose, end in ends.items():
        days = (end - now).days
        if end <= now:
            warnings.append(f"Your {purpose} certificate has ended. Ask the operator how to go on.")
        elif days < _RENEWAL_DAYS:
            warnings.append(f"Your {purpose} certificate ends in {days} days. Run 'elmgrove-owner renew'.")
    return warnings


def _expert_warnings(experts: tuple[ExpertLine, ...]) -> list[str]:
    return [
        f"You hold a receipt for {line.name} version {line.version}, which the coordinator does not list. Show it to the operator."
        for line in experts
        if line.state == "unknown"
    ]
