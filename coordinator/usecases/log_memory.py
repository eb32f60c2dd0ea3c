"""Noticing that an old copy of the log was put back: the log on the disk must continue the newest one this coordinator has signed.

The database remembers that one. What both the log and the database forgot, owners' clients still know: they keep the checkpoints they
were shown.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import LogError, LogInconsistentError, StorageError
from common.translog.checkpoint import Checkpoint, verify_checkpoint
from common.translog.merkle import verify_consistency
from coordinator.log.view import LogView
from coordinator.log.writer import LogWriter
from coordinator.store.log_head import LogHead

__all__ = ["RememberingWriter", "check_continues"]

logger = logging.getLogger(__name__)


class RememberingWriter(LogWriter):
    """A writer whose every new checkpoint is remembered outside the log too.

    Args:
        folder: the log's folder.
        vkey: the log's verifier key.
        key: the matching private key.
        origin: the log's name.
        head: where the newest checkpoint is remembered.
    """

    def __init__(self, folder: Path, vkey: str, key: Ed25519PrivateKey, origin: str, head: LogHead) -> None:
        super().__init__(folder, vkey, key, origin)
        self._verifier, self._remembered = vkey, head

    def append(self, entries: Sequence[bytes], documents: Sequence[bytes]) -> int:
        """See :meth:`LogWriter.append`. What is durable in the log stays so even if it cannot be remembered; the next append does."""
        first = super().append(entries, documents)
        try:
            self._remembered.remember(verify_checkpoint(self.checkpoint, self._verifier))
        except StorageError as error:
            logger.warning("the log's newest size could not be noted: %s", error)
        return first


def check_continues(view: LogView, vkey: str, head: LogHead) -> Checkpoint | None:
    """Check that the log on the disk continues the one remembered; returns its checkpoint, None if it is empty.

    Raises:
        LogInconsistentError: it is shorter, or another.
        LogError: it does not hold.
    """
    view.refresh()
    remembered = head.recall()
    present = verify_checkpoint(view.checkpoint, vkey) if view.checkpoint else None
    if remembered is None:
        return present
    size, root = remembered
    if present is None or present.size < size:
        raise LogInconsistentError(
            f"The log on the disk has {present.size if present else 0} entries, but this coordinator has signed {size}: an old copy was "
            "put back, and owners' clients would refuse it. Put the newest copy of the log's folder back."
        )
    try:
        verify_consistency(size, present.size, view.consistency(size)[0], root, present.root)
    except LogError as error:
        raise LogInconsistentError(
            f"The first {size} entries of the log on the disk are not those that this coordinator has signed: {error}"
        ) from error
    return present
