"""Checking a coordinator's home: the log by the auditor's own reader, every blob against the log, the database against both.

1. log: tiles, root, signatures, documents, rules (``common/audit/logs.py``), under the log key and certificates of this home
2. memory: the log continues the newest one that this coordinator has signed; no upload was accepted by an entry that is not there
3. blobs: every file of every anchor and of every expert that is in force is here, whole; others may have been deleted (``gc``)
4. database: what it says of uploads and invitations is what the log says

What the database holds of the log is a cache: :func:`rebuild_database` makes it again. Nothing here opens a private key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from common.audit.logs import open_log
from common.audit.report import AuditReport
from common.errors import (
    CertificateError,
    DigestError,
    ElmgroveError,
    LayoutError,
    LogError,
    LogInconsistentError,
    NotFoundError,
    StaleDatabaseError,
    StorageError,
)
from common.formats.fields import format_time, utc_now
from common.formats.manifest import FileEntry
from common.formats.strictjson import b64encode
from common.ledger.state import ConsortiumState
from common.progress import ProgressSink, silent
from common.weights.digests import digest_file
from common.weights.parallel import Meter, map_threads
from coordinator.config import Home, load_config
from coordinator.log.view import LogView
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from coordinator.store.invitations import Invitations
from coordinator.store.log_head import LogHead
from coordinator.store.uploads import UploadRecord, Uploads
from coordinator.usecases.context import open_public
from coordinator.usecases.log_memory import check_continues

__all__ = ["check_home", "rebuild_database"]


@dataclass(frozen=True, slots=True)
class _Stored:
    """The operational state of one home, opened to be compared with its log."""

    database: Database
    head: LogHead
    uploads: Uploads
    invitations: Invitations
    records: tuple[UploadRecord, ...]
    """The uploads as they were before the log was read, so that the log knows of every entry they name."""

    @classmethod
    def open(cls, home: Home, database: Database) -> _Stored:
        uploads = Uploads(database, home.uploads)
        return cls(database, LogHead(database), uploads, Invitations(database), tuple(uploads.all()))


def check_home(home: Home, *, quick: bool = False, progress: ProgressSink = silent) -> AuditReport:
    """All four steps, as a report.

    Args:
        home: the coordinator's.
        quick: look at the sizes of blobs and not at their bytes.
        progress: told of the bytes hashed.

    Raises:
        NotFoundError: no consortium was founded there.
        ConfigError: its settings are wrong.
    """
    load_config(home)
    report = AuditReport("home", home.path.name)
    stored = _open_stored(report, home)
    try:
        _check(report, home, stored, quick=quick, progress=progress)
    finally:
        if stored is not None:
            stored.database.close()
    return report


def _check(report: AuditReport, home: Home, stored: _Stored | None, *, quick: bool, progress: ProgressSink) -> None:
    root, log_key = open_public(home)
    with report.collecting():
        with report.checking("log"):
            state = open_log(home.log, root).state
            if state.log_key != log_key:
                raise LogError("The log was founded with another log key than the one of this home.")
        report.holds("log", f"{state.size} entries: tiles, root, signatures, documents and rules")
        report.facts |= {"size": state.size, "quick": quick}
        with report.also_checking("certificates", "the operator's and the server's are those that the log lists"):
            _check_own_certificates(home, state)
        if stored is not None:
            with report.checking("memory"):
                _check_memory(home, log_key, state, stored)
            report.holds("memory", "the log continues the newest one that was signed here")
        _check_blobs(report, home, state, quick=quick, progress=progress)
        if stored is not None:
            _check_database(report, state, stored)


def _open_stored(report: AuditReport, home: Home) -> _Stored | None:
    try:
        if not home.database.is_file():
            raise StorageError("it is missing")
        return _Stored.open(home, Database(home.database))
    except StorageError as error:
        report.fails("database", [StaleDatabaseError(f"The database cannot be read ({error}). Run fsck --rebuild.")])
        return None


def _check_own_certificates(home: Home, state: ConsortiumState) -> None:
    listed = {record.der for record in state.certificates}
    for name in ("operator", "server"):
        path = home.certificates / f"{name}.pem"
        try:
            der = x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER)
        except (OSError, ValueError) as error:
            raise CertificateError(f"The {name} certificate of this home cannot be read.") from error
        if b64encode(der) not in listed:
            raise CertificateError(f"The {name} certificate of this home is not one that the log lists as in force.")


def _check_memory(home: Home, log_key: str, state: ConsortiumState, stored: _Stored) -> None:
    check_continues(LogView(home.log, log_key), log_key, stored.head)
    for record in stored.records:
        if record.entry_index is not None and record.entry_index >= state.size:
            raise LogInconsistentError(
                f"Expert {record.expert} version {record.version} was accepted by log entry {record.entry_index}, but the log on the disk "
                f"has {state.size} entries: an old copy was put back."
            )


# --- blobs ------------------------------------------------------------------------------------------------------------------


def _check_blobs(report: AuditReport, home: Home, state: ConsortiumState, *, quick: bool, progress: ProgressSink) -> None:
    blobs = Blobs(home.blobs)
    needed, ended = _named_files(state)
    gone = {digest for digest in ended if not blobs.has(digest)}
    wanted = needed | {digest: each for digest, each in ended.items() if digest not in gone}
    meter = Meter("Checking blobs", 0 if quick else sum(entry.size for _, entry in wanted.values()), progress)

    def fault(item: tuple[str, tuple[str, FileEntry]]) -> ElmgroveError | None:
        digest, (whose, entry) = item
        return _blob_fault(blobs, digest, whose, entry, None if quick else meter)

    faults = [found for found in map_threads(fault, wanted.items(), meter) if found is not None]
    looked = "sizes" if quick else "digests"
    report.outcome("blobs", faults, f"{len(wanted)} files of anchors and experts, by their {looked}")
    if gone:
        report.note("blobs", f"{len(gone)} files of experts that left are not here any more")
    strays = blobs.unnamed({*needed, *ended}, older_than=utc_now().timestamp())
    if strays:
        report.note("blobs", f"{len(strays)} files that no logged manifest names; 'gc' deletes them after a day")
    report.facts |= {"blobs": len(wanted), "blobs_gone": len(gone), "strays": list(strays)}


def _named_files(state: ConsortiumState) -> tuple[dict[str, tuple[str, FileEntry]], dict[str, tuple[str, FileEntry]]]:
    """Files by digest, each with whose it is: those that must be here, and those of ended versions that may have been deleted."""
    needed: dict[str, tuple[str, FileEntry]] = {}
    for anchor in state.anchors.values():
        needed |= {entry.sha256: (f"anchor {anchor.name}", entry) for entry in anchor.manifest.files}
    ended: dict[str, tuple[str, FileEntry]] = {}
    for version in (version for versions in state.experts.values() for version in versions):
        files = {entry.sha256: (f"expert {version.name} version {version.version}", entry) for entry in version.manifest.files}
        target = needed if version.status == "in-force" else ended
        target |= files
    return needed, {digest: each for digest, each in ended.items() if digest not in needed}


def _blob_fault(blobs: Blobs, digest: str, whose: str, entry: FileEntry, meter: Meter | None) -> ElmgroveError | None:
    path, what = blobs.path(digest), f"{entry.name} of {whose} (blob {digest[:16]})"
    try:
        size = path.lstat().st_size
        if size != entry.size:
            return DigestError(f"{what} has {size} bytes and not {entry.size}.")
        if meter is not None and digest_file(path, chunks=False, meter=meter).sha256 != digest:
            return DigestError(f"{what} does not have its digest: its bytes were changed.")
    except (FileNotFoundError, NotFoundError):
        return NotFoundError(f"{what} is missing.")
    except LayoutError as error:
        return LayoutError(f"{what}: {error}")
    return None


# --- the database -----------------------------------------------------------------------------------------------------------


def _accepted_index(state: ConsortiumState, record: UploadRecord) -> int | None:
    """The entry by which the log took an upload's package; None if it did not."""
    versions = state.experts.get(record.expert, ())
    return next((each.index for each in versions if each.digest == record.manifest), None)


def _check_database(report: AuditReport, state: ConsortiumState, stored: _Stored) -> None:
    faults: list[ElmgroveError] = []
    for record in stored.records:
        index = _accepted_index(state, record)
        what = f"upload of {record.expert} version {record.version}"
        if record.entry_index is None and index is not None:  # a crash, or a commit at this very moment
            report.note(
                "database", f"the {what} is still open, although log entry {index} accepted it; asking for its commit again ends it"
            )
        elif record.entry_index != index:
            faults.append(StaleDatabaseError(f"The {what} is {_said(record.entry_index)} here, {_said(index)} in the log."))
    admitted = stored.invitations.unspent() & set(state.owners)
    faults += [
        StaleDatabaseError(f"An invitation for {owner} counts as unused, but the log admitted that owner.") for owner in sorted(admitted)
    ]
    report.outcome("database", faults, "uploads and invitations agree with the log")


def _said(index: int | None) -> str:
    return "not accepted" if index is None else f"accepted by entry {index}"


def rebuild_database(home: Home) -> Mapping[str, int]:
    """Make what the database holds of the log again, from the log; returns how much was changed, by what it is.

    A database that is missing or damaged is begun anew (the damaged one is kept beside it). What only the database knew is then lost:
    invitations that nobody has used, and uploads under way, which their owners send again.

    Raises:
        LogError: the log does not hold; it must be put right first.
        LogInconsistentError: the log is older than one that was signed here; nothing is changed.
    """
    root, log_key = open_public(home)
    database, begun = _open_or_begin(home)
    try:
        stored = _Stored.open(home, database)
        state = open_log(home.log, root).state
        _check_memory(home, log_key, state, stored)
        changed = {"databases": begun, "uploads": 0, "invitations": 0}
        for record in stored.records:
            index = _accepted_index(state, record)
            if record.entry_index != index:
                changed["uploads"] += 1
                stored.uploads.accept(record, index) if index is not None else stored.uploads.remove(record.id)
        for owner in stored.invitations.unspent() & set(state.owners):
            changed["invitations"] += 1
            stored.invitations.spend_for(owner, at=utc_now())
        present = check_continues(LogView(home.log, log_key), log_key, stored.head)
        if present is not None:
            stored.head.remember(present)
        return changed
    finally:
        database.close()


def _open_or_begin(home: Home) -> tuple[Database, int]:
    begun = int(not home.database.is_file())
    try:
        database = Database(home.database)
        home.database.chmod(0o600)
        return database, begun
    except StorageError:
        suffix = f".damaged-{format_time(utc_now()).replace(':', '')}"
        for name in ("state.db", "state.db-wal", "state.db-shm"):
            path = home.path / name
            if path.exists():
                path.rename(path.with_name(name + suffix))
        database = Database(home.database)
        home.database.chmod(0o600)
        return database, 1
