"""What every gRPC method shares: who calls, and how a failure is told (``common/rpc/errors.py``)."""

from __future__ import annotations

import functools
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, ParamSpec, TypeVar

import grpc

from common.errors import ElmgroveError, InternalError, QuotaError, UnauthenticatedError, UnavailableError
from common.ledger.state import OwnerState
from common.rpc.errors import wire_status
from coordinator.usecases.context import Coordinator
from coordinator.usecases.identity import authenticate

__all__ = ["Slots", "caller", "caller_certificate", "handled", "handled_stream"]

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def handled(method: Callable[..., T]) -> Callable[..., T]:
    """Let a unary method fail with our errors: the peer gets code and public text, the operator's log gets the rest."""

    @functools.wraps(method)
    def wrapper(servicer: object, request: Any, context: grpc.ServicerContext) -> T:
        try:
            return method(servicer, request, context)
        except Exception as error:  # noqa: BLE001 - the outermost frame of a call: anything unexpected becomes InternalError
            _fail(context, error, method.__qualname__)

    return wrapper


def handled_stream(method: Callable[..., Iterator[T]]) -> Callable[..., Iterator[T]]:
    """As :func:`handled`, for a method that yields its answers."""

    @functools.wraps(method)
    def wrapper(servicer: object, request: Any, context: grpc.ServicerContext) -> Iterator[T]:
        try:
            yield from method(servicer, request, context)
        except Exception as error:  # noqa: BLE001 - the outermost frame of a call: anything unexpected becomes InternalError
            if context.is_active():
                _fail(context, error, method.__qualname__)

    return wrapper


def _fail(context: grpc.ServicerContext, error: Exception, where: str) -> NoReturn:
    if isinstance(error, ElmgroveError):
        logger.info("%s: %s: %s", where, error.code, error)
        expected = error
    else:
        logger.error("%s failed", where, exc_info=error)
        expected = InternalError()
    wire = wire_status(expected)
    context.set_trailing_metadata(wire.metadata)
    context.abort(wire.status, wire.text)
    raise expected


def caller(coordinator: Coordinator, context: grpc.ServicerContext) -> OwnerState:
    """The owner whose certificate stands behind this call.

    Raises:
        UnauthenticatedError, RevokedError: there is none, or it is not, or no longer, an owner of this consortium.
    """
    return authenticate(coordinator, caller_certificate(context))


def caller_certificate(context: grpc.ServicerContext) -> bytes:
    """The PEM of the certificate that the TLS handshake of this call proved.

    Raises:
        UnauthenticatedError: there is none.
    """
    certificates: Sequence[Any] = context.auth_context().get("x509_pem_cert") or ()
    if not certificates:
        raise UnauthenticatedError
    return bytes(certificates[0])


class Slots:
    """How many streams may be open at a time: of one owner, and of all.

    Args:
        of_one: limit per owner.
        of_all: limit over all owners, under the number of server threads so that short calls always find one.
    """

    def __init__(self, *, of_one: int, of_all: int) -> None:
        self._of_one, self._of_all = of_one, of_all
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()

    @contextmanager
    def take(self, owner: str) -> Iterator[None]:
        """Hold one slot for the block.

        Raises:
            QuotaError: the owner has all its streams open already.
            UnavailableError: the coordinator has; try again later.
        """
        with self._lock:
            if self._taken[owner] >= self._of_one:
                raise QuotaError(f"{self._of_one} streams are open already, as many as one owner may have.")
            if self._taken.total() >= self._of_all:
                raise UnavailableError("The coordinator has as many streams open as it serves.")
            self._taken[owner] += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken[owner] -= 1
                if not self._taken[owner]:
                    del self._taken[owner]
