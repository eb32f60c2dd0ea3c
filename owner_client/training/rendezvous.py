"""How the first process hands the prepared run to the others: one key in the store that ``torch.distributed`` meets at."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch's stubs forget it

from common.errors import UsageError

__all__ = ["await_plan", "publish_plan", "serve_store"]

_LOOK = 0.1  # seconds between looks
_ANSWER = timedelta(seconds=30)  # of the store


def _key() -> str:
    return f"elmgrove/plan/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _store(*, hosts: bool) -> TCPStore:
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError) as error:
        raise UsageError("MASTER_ADDR and MASTER_PORT are not set: start the command with torchrun.") from error
    return TCPStore(host, port, is_master=hosts, wait_for_workers=False, timeout=_ANSWER)


def publish_plan(text: str) -> None:
    """Let every other process of this ``torchrun`` go on with the plan.

    Raises:
        UsageError: the environment does not say where the processes meet.
    """
    _store(hosts=False).set(_key(), text)


def await_plan() -> str:
    """Wait, for as long as reading and tokenising take, for the plan of the first process.

    Raises:
        UsageError: the environment does not say where the processes meet.
    """
    store = _store(hosts=False)
    while not store.check([_key()]):
        time.sleep(_LOOK)
    return bytes(store.get(_key())).decode()


@contextlib.contextmanager
def serve_store() -> Iterator[tuple[dict[str, str], Callable[[str], None]]]:
    """A meeting place on this machine for processes that are started here: their environment, and how to publish the plan."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=_ANSWER)
    variables = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is served here, not by rank 0
        "GLOO_SOCKET_IFNAME": "lo",
    }

    def publish(text: str) -> None:
        store.set(_key(), text)

    yield variables, publish
