"""The two listening ports: enrolment under server TLS, everything else under mutual TLS (``docs/adr/0001-two-ports.md``)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent import futures
from typing import Any, Final

import grpc
from cryptography.hazmat.primitives.serialization import Encoding

from common.errors import PortInUseError
from common.rpc.limits import server_options
from common.rpc.v1 import elmgrove_pb2_grpc as stubs
from common.trust.keys import private_key_pem
from coordinator.service.handling import Slots
from coordinator.service.servicers import (
    CertificatesService,
    ConsortiumService,
    EnrolmentService,
    ExpertsService,
    LogService,
    TransferService,
)
from coordinator.usecases.context import Coordinator
from coordinator.usecases.uploads import clear_uploads

__all__ = ["CoordinatorServer"]

logger = logging.getLogger(__name__)

_THREADS: Final = 96  # one per call or stream under way
_STREAMS: Final = 64  # leaves a third of the threads to short calls
_ENROLMENT_THREADS: Final = 4  # strangers may reach this port; they get little of the machine
_ENROLMENT_CALLS: Final = 64  # under way or waiting; more are turned away
_GRACE_SECONDS: Final = 5.0  # for calls under way when the server stops; uploads resume, so none need finish


def _add(register: Callable[[Any, grpc.Server], None], servicer: object, server: grpc.Server) -> None:
    """Call one of the generated, untyped registration functions."""
    register(servicer, server)


class CoordinatorServer:
    """Both ports of one coordinator. :meth:`start` listens, :meth:`stop` ends; what was acknowledged before is durable.

    Args:
        coordinator: whose.
        listen: local address; None takes the settings'.
        port: port for owners; None takes the settings'.
        enrol_port: port for enrolment; None takes the settings'.

    Raises:
        KeyStoreError: the server's key cannot be opened.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        *,
        listen: str | None = None,
        port: int | None = None,
        enrol_port: int | None = None,
    ) -> None:
        config = coordinator.config
        self._coordinator = coordinator
        self._listen = (listen or config.listen).strip("[]")
        self._port, self._enrol_port = port or config.port, enrol_port or config.enrol_port
        self._main = grpc.server(futures.ThreadPoolExecutor(_THREADS, "call"), options=server_options())
        self._enrolment = grpc.server(
            futures.ThreadPoolExecutor(_ENROLMENT_THREADS, "enrol"),
            options=server_options(),
            maximum_concurrent_rpcs=_ENROLMENT_CALLS,
        )
        self._register()

    def _register(self) -> None:
        here = self._coordinator
        slots = Slots(of_one=here.config.quota.streams, of_all=_STREAMS)
        _add(stubs.add_EnrolmentServicer_to_server, EnrolmentService(here), self._enrolment)
        _add(stubs.add_ConsortiumServicer_to_server, ConsortiumService(here), self._main)
        _add(stubs.add_TransferServicer_to_server, TransferService(here, slots), self._main)
        _add(stubs.add_LogServicer_to_server, LogService(here), self._main)
        _add(stubs.add_CertificatesServicer_to_server, CertificatesService(here), self._main)
        _add(stubs.add_ExpertsServicer_to_server, ExpertsService(here), self._main)

    @property
    def address(self) -> str:
        """Where owners call: local address and port."""
        return f"{self._listen}, port {self._port}"

    @property
    def enrol_address(self) -> str:
        """Where owners enrol: local address and port."""
        return f"port {self._enrol_port}"

    def start(self) -> None:
        """Clear what an earlier run left unfinished for too long, then listen on both ports.

        Raises:
            PortInUseError: a port is taken, or the address is not this machine's; the message names the port.
        """
        pair = self._coordinator.keys.signing("server")
        key, chain = private_key_pem(pair.key, None), pair.certificate.public_bytes(Encoding.PEM)
        root = self._coordinator.root.certificate.public_bytes(Encoding.PEM)
        self._bind(self._main, self._port, grpc.ssl_server_credentials([(key, chain)], root, require_client_auth=True))
        self._bind(self._enrolment, self._enrol_port, grpc.ssl_server_credentials([(key, chain)]))
        cleared = clear_uploads(self._coordinator)
        if cleared:
            logger.info("cleared %d abandoned uploads", cleared)
        self._main.start()
        self._enrolment.start()

    def _bind(self, server: grpc.Server, port: int, credentials: grpc.ServerCredentials) -> None:
        host = f"[{self._listen}]" if ":" in self._listen else self._listen
        try:
            bound = server.add_secure_port(f"{host}:{port}", credentials)
        except RuntimeError:
            bound = 0
        if not bound:
            self.stop(grace=0)
            raise PortInUseError(
                f"Cannot listen on {self._listen}, port {port}: it is in use, or not an address of this machine. "
                "Stop the other program, or set another port in coordinator.toml (owners invited before keep the old one)."
            )

    def stop(self, grace: float = _GRACE_SECONDS) -> None:
        """Take no new calls, give those under way ``grace`` seconds, and return when both ports are free."""
        stopping = [server.stop(grace) for server in (self._main, self._enrolment)]
        for event in stopping:
            event.wait()
