"""What a served coordinator does by itself now and then: delete what the retention settings let go."""

from __future__ import annotations

import logging
import threading
from typing import Final

from common.errors import ElmgroveError
from coordinator.usecases.collect_garbage import collect_garbage
from coordinator.usecases.context import Coordinator

__all__ = ["Housekeeper"]

logger = logging.getLogger(__name__)

_INTERVAL_SECONDS: Final = 6 * 3600.0  # retention is counted in days


class Housekeeper:
    """A thread that works once at the start and then every few hours, between :meth:`start` and :meth:`stop`.

    Args:
        coordinator: whose house.
        interval: seconds from one round to the next.
    """

    def __init__(self, coordinator: Coordinator, *, interval: float = _INTERVAL_SECONDS) -> None:
        self._coordinator, self._interval = coordinator, interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the round under way."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                garbage = collect_garbage(self._coordinator)
            except (ElmgroveError, OSError) as error:
                logger.warning("nothing was deleted: %s", error)
            else:
                for deletion in garbage.deletions:
                    logger.info("deleted expert %s version %d, %d bytes", deletion.expert.name, deletion.expert.version, deletion.size)
            self._stop.wait(self._interval)
