"""Our client as a witness: it cosigns the log's checkpoints after checking that each continues what it saw before (C2SP tlog-cosignature).

1. The checkpoint extends the last one we saw and is persisted (``sync.py``). 2. Our witness key is registered: a statement under our
signing key, in the log, whose receipt we keep. 3. What is signed is the checkpoint as persisted, so that never an older one is signed
after a newer. 4. The coordinator publishes the line under its checkpoint. If it has a newer one by then, all is done once more for that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import ElmgroveError, UnavailableError
from common.files import storage_errors, write_atomic
from common.formats.fields import format_time, utc_now
from common.formats.statements import WitnessRegistered
from common.rpc.v1 import elmgrove_pb2 as pb
from common.translog.cosignature import cosign, witness_name, witness_vkey
from common.translog.note import parse_vkey
from common.translog.proof import parse_receipt
from common.trust.statements import sign_statement
from owner_client.config import Home, OwnerConfig
from owner_client.daemon.locks import exclusive
from owner_client.daemon.receipts import Claim, check_receipt, load_receipt, store_receipt
from owner_client.daemon.sync import LogSource, SeenCheckpoint, follow_log, last_checkpoint

__all__ = ["Witness", "WitnessedLog"]

logger = logging.getLogger(__name__)

_ATTEMPTS: Final = 3  # the log may grow between seeing and cosigning; whoever made it grow will cosign too

T = TypeVar("T")
Signer = Callable[[], tuple[ec.EllipticCurvePrivateKey, x509.Certificate]]


class WitnessedLog(LogSource, Protocol):
    """A log that publishes cosignatures."""

    def register_witness(self, envelope: bytes) -> pb.Receipt:
        """Have a witness-registered statement logged."""

    def cosign(self, size: int, line: str) -> bool:
        """Whether the line is published under the checkpoint of this size; not if there is a newer one."""


@dataclass(frozen=True, slots=True, repr=False)
class Witness:
    """Our witness key, opened, and what registering it takes.

    Attributes:
        key: the Ed25519 key that cosigns.
        signer: opens the signing key and certificate; called only when the key is to be registered.
    """

    home: Home
    config: OwnerConfig
    key: Ed25519PrivateKey
    signer: Signer

    @property
    def vkey(self) -> str:
        """Our witness key as others verify it."""
        return witness_vkey(self._name, self.key)

    @property
    def _name(self) -> str:
        return witness_name(self.config.consortium, self.config.owner)

    @property
    def _receipt(self) -> Path:
        return self.home.receipts / f"witness-{parse_vkey(self.vkey).key_id:08x}"

    def attest(self, log: WitnessedLog, seen: SeenCheckpoint) -> SeenCheckpoint:
        """Cosign the checkpoint that was just ``seen``, or the one that has taken its place, and return that.

        A coordinator that does not take the cosignature is no danger to us: that is logged as a warning and nothing more.

        Raises:
            LogInconsistentError: the log contradicts itself; the proof was written to a file.
            LogError: what it says of our registration does not hold.
            UnavailableError: the coordinator does not answer.
        """
        for _ in range(_ATTEMPTS):
            if not self._is_registered():
                note = self._register(log)
                if note is None:
                    return seen
                seen = follow_log(self.home, self.config, log, [note])
            if self._send(log) is not False:
                return seen
            seen = follow_log(self.home, self.config, log)
        return seen

    def _is_registered(self) -> bool:
        subject = f"owner/{self.config.owner}"
        return load_receipt(self._receipt, "witness-registered", subject, self.config.pinned.log_key) is not None

    def _register(self, log: WitnessedLog) -> bytes | None:
        """Register our key and keep the receipt; returns the checkpoint it came with, or None if we were refused."""
        envelope = self._registration()
        answer = _asked(lambda: log.register_witness(envelope))
        if answer is None:
            return None
        claim = Claim("witness-registered", f"owner/{self.config.owner}", envelope)
        receipt = check_receipt(answer.entry, answer.tlog_proof, claim, self.config.pinned.log_key)
        store_receipt(self._receipt, receipt)
        self._pending.unlink(missing_ok=True)
        return parse_receipt(receipt.proof).checkpoint

    @property
    def _pending(self) -> Path:
        """Where the signed registration waits for its receipt, so that one cut off in between is finished with the same one."""
        return self._receipt.with_name(f".{self._receipt.name}.pending")

    def _registration(self) -> bytes:
        if self._pending.is_file():
            return self._pending.read_bytes()
        key, certificate = self.signer()
        statement = WitnessRegistered(
            schema="elmgrove.witness-registered/v1",
            consortium=self.config.consortium,
            created=format_time(utc_now()),
            owner=self.config.uri,
            key=self.vkey,
        )
        envelope = sign_statement(statement, key, certificate)
        with storage_errors("the registration of the witness key"):
            self._pending.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self._pending, envelope)
        return envelope

    def _send(self, log: WitnessedLog) -> bool | None:
        """Cosign the checkpoint as it is persisted now; whether it is published, or None if the coordinator refused."""
        with exclusive(self.home.checkpoint.parent / "lock"):
            last = last_checkpoint(self.home, self.config.pinned.log_key)
            if last is None:
                return None
            line = cosign(last.note, self._name, self.key, utc_now())
        return _asked(lambda: log.cosign(last.checkpoint.size, line))


def _asked(call: Callable[[], T]) -> T | None:
    """The coordinator's answer; None, and a warning, if it refuses. That it does not answer at all is the caller's to know."""
    try:
        return call()
    except UnavailableError:
        raise
    except ElmgroveError as error:
        logger.warning("the log was followed, but its checkpoint not cosigned: %s", error)
        return None
