"""Following the log: every checkpoint we are shown must extend every one we were shown before (RFC 6962, section 2.1.2).

The last verified checkpoint is kept under ``log/checkpoint``. A contradiction (a fork or a rollback) is written to a file of its
own, with both signed notes and the failing proof, so that it can be shown to others without us; then the call fails.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from common.errors import LogError, LogInconsistentError, ProtocolError
from common.files import storage_errors, write_atomic
from common.formats.fields import utc_now
from common.translog.checkpoint import Checkpoint, verify_checkpoint
from common.translog.evidence import contradiction
from common.translog.merkle import verify_consistency
from owner_client.config import Home, OwnerConfig
from owner_client.daemon.locks import exclusive

__all__ = ["ConsistencyAnswer", "LogSource", "SeenCheckpoint", "follow_log", "last_checkpoint", "remember_first"]

_MAX_CHECKPOINT_BYTES: Final = 64 * 1024  # bytes; a note with a few hundred witnesses
_ATTEMPTS: Final = 8  # the log may grow between two questions; each attempt asks all of them again


@dataclass(frozen=True, slots=True)
class SeenCheckpoint:
    """A checkpoint whose signature holds, and the signed note it was read from."""

    checkpoint: Checkpoint
    note: bytes


@dataclass(frozen=True, slots=True)
class ConsistencyAnswer:
    """The log's claim that its present checkpoint ``note`` extends an older size, with the hashes that prove it."""

    note: bytes
    proof: Sequence[bytes]


class LogSource(Protocol):
    """The two questions the log is asked."""

    def consistency(self, old_size: int) -> ConsistencyAnswer:
        """The present checkpoint, and the proof that it extends size ``old_size`` (no proof for an ``old_size`` that is not smaller)."""


def last_checkpoint(home: Home, log_key: str) -> SeenCheckpoint | None:
    """The last checkpoint we verified, or ``None`` before the first.

    Raises:
        LogError: the kept note was changed.
    """
    try:
        note = home.checkpoint.read_bytes()
    except FileNotFoundError:
        return None
    return _verified(note, log_key)


def _verified(note: bytes, log_key: str) -> SeenCheckpoint:
    if len(note) > _MAX_CHECKPOINT_BYTES:
        raise LogError("A checkpoint is larger than any real one.")
    return SeenCheckpoint(verify_checkpoint(note, log_key), note)


def remember_first(folder: Path, note: bytes) -> None:
    """Keep the checkpoint that came with our admission under the new home ``folder``."""
    with storage_errors("the checkpoint"):
        (folder / "log").mkdir(exist_ok=True)
    write_atomic(folder / "log" / "checkpoint", note)


def follow_log(home: Home, config: OwnerConfig, source: LogSource, shown: Sequence[bytes] = ()) -> SeenCheckpoint:
    """Move to the log's present checkpoint after checking that it extends the last one seen and those just ``shown``.

    Args:
        home: where the last checkpoint is kept.
        config: our settings, for the pinned log key.
        source: the log.
        shown: further signed notes, for example of a receipt, that the present log must extend too.

    Raises:
        LogInconsistentError: the log contradicts itself; the message names the file with the proof.
        LogError: a checkpoint is not signed by the log's key.
        ProtocolError: the answers do not fit together.
    """
    key = config.pinned.log_key
    # A slower process would move the checkpoint back.
    with exclusive(home.checkpoint.parent / "lock"):
        last = last_checkpoint(home, key)
        olds = [*([last] if last else []), *(_verified(note, key) for note in shown)]
        now = _extends_all(home, config, source, olds)
        if last is None or now.note != last.note:
            write_atomic(home.checkpoint, now.note)
        return now


def _extends_all(home: Home, config: OwnerConfig, source: LogSource, olds: Sequence[SeenCheckpoint]) -> SeenCheckpoint:
    sizes = [old.checkpoint.size for old in olds] or [0]
    for _ in range(_ATTEMPTS):
        answers = [source.consistency(size) for size in sizes]
        heads = [_verified(answer.note, config.pinned.log_key) for answer in answers]
        for old, head, answer in zip(olds, heads, answers, strict=False):
            _check_extends(home, config, old, head, answer.proof)
        if all(head.checkpoint == heads[-1].checkpoint for head in heads):
            return heads[-1]
        olds = [*olds, *heads] if len(olds) == len(sizes) else olds
        sizes = [old.checkpoint.size for old in olds]
    raise ProtocolError("The log grew faster than it could be followed; try again.")


def _check_extends(home: Home, config: OwnerConfig, old: SeenCheckpoint, new: SeenCheckpoint, proof: Sequence[bytes]) -> None:
    try:
        if new.checkpoint.origin != old.checkpoint.origin:
            raise LogError("The checkpoints are of different logs.")
        if new.checkpoint.size < old.checkpoint.size:
            raise LogInconsistentError("The log became shorter.")
        verify_consistency(old.checkpoint.size, new.checkpoint.size, proof, old.checkpoint.root, new.checkpoint.root)
    except LogError as error:
        path = _write_proof(home, config, old, new, proof, str(error))
        raise LogInconsistentError(
            f"The log contradicts what it showed before (size {old.checkpoint.size} then, {new.checkpoint.size} now): {error} "
            f"The signed evidence is in {path}; show it to the other owners and to an auditor. Nothing more was done."
        ) from error


def _write_proof(home: Home, config: OwnerConfig, old: SeenCheckpoint, new: SeenCheckpoint, proof: Sequence[bytes], finding: str) -> Path:
    """Write the evidence as one file that can be checked with the log's public key alone."""
    moment = utc_now()
    document = contradiction(
        consortium=config.consortium,
        log_key=config.pinned.log_key,
        older=old.note,
        newer=new.note,
        proof=proof,
        finding=finding,
        found=moment,
    )
    path = home.checkpoint.parent / f"contradiction-{moment:%Y%m%dT%H%M%SZ}.json"
    write_atomic(path, (json.dumps(document, indent=2) + "\n").encode("utf-8"))
    return path
