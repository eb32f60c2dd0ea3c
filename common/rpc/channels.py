"""Client side of the wire: mutual TLS to the main port, pinned TLS to the enrolment port."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self

import grpc

from common.errors import RootFingerprintError, UnavailableError
from common.formats.invitation import Invitation
from common.rpc.diagnosis import explain_unavailable
from common.rpc.errors import error_from_rpc
from common.rpc.limits import CALL_SECONDS, CONNECT_SECONDS, client_options
from common.rpc.retries import retrying
from common.rpc.v1 import elmgrove_pb2 as pb
from common.rpc.v1 import elmgrove_pb2_grpc as stubs
from common.trust.certificates import TrustRoot, verify_leaf

__all__ = ["ClientIdentity", "Connection", "EnrolmentConnection", "fetch_root"]

_MAX_ROOT_BYTES: Final = 16 * 1024  # bytes of DER; ours have about 500


@dataclass(frozen=True, slots=True, repr=False)
class ClientIdentity:
    """An owner's transport key and certificate, PEM. The key is unencrypted here and never leaves this process."""

    key_pem: bytes
    certificate_pem: bytes


class _TlsConnection:
    """One gRPC channel whose failures come out as our own errors. Safe to share between threads."""

    def __init__(self, host: str, port: int, *, root_pem: bytes, identity: ClientIdentity | None) -> None:
        self._host, self._port, self._root_pem, self._identity = host, port, root_pem, identity
        credentials = grpc.ssl_channel_credentials(
            root_certificates=root_pem,
            private_key=identity.key_pem if identity else None,
            certificate_chain=identity.certificate_pem if identity else None,
        )
        self._channel = grpc.secure_channel(_target(host, port), credentials, options=client_options())

    def call(self, method: Callable[..., Any], request: object, *, timeout: float = CALL_SECONDS, patience: float = 0.0) -> Any:
        """Make one unary call, again while the coordinator does not answer and ``patience`` (seconds) lasts.

        Args:
            method: a method of one of this connection's stubs.
            request: its request message.
            timeout: deadline of one try, seconds.
            patience: only for calls that are safe to repeat; all of ours but ``Join`` are.

        Raises:
            ElmgroveError: the class the coordinator named.
            UnauthenticatedError: it refused our certificate in the handshake.
            CertificateError: its certificate is not the consortium's.
            UnavailableError: it does not answer.
        """

        def once() -> Any:
            with self.translated():
                return method(request, timeout=timeout)

        return retrying(once, patience=patience)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn gRPC's failures inside the block into ours; for streaming calls, around the reading too."""
        try:
            yield
        except grpc.RpcError as error:
            translated = error_from_rpc(error)
            if type(translated) is UnavailableError:
                translated = explain_unavailable(self._host, self._port, self._root_pem, self._client_pem(), otherwise=translated)
            raise translated from error

    def _client_pem(self) -> bytes | None:
        return self._identity.key_pem + b"\n" + self._identity.certificate_pem if self._identity else None

    def close(self) -> None:
        """Close the channel; calls under way fail with ``UnavailableError``."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Connection(_TlsConnection):
    """A connection to the main port, as one owner.

    Attributes:
        consortium: stub of ``elmgrove.v1.Consortium``.
        transfer: stub of ``elmgrove.v1.Transfer``.
        log: stub of ``elmgrove.v1.Log``.
        experts: stub of ``elmgrove.v1.Experts``.
        certificates: stub of ``elmgrove.v1.Certificates``.
    """

    def __init__(self, host: str, port: int, *, root_pem: bytes, identity: ClientIdentity | None) -> None:
        super().__init__(host, port, root_pem=root_pem, identity=identity)
        self.consortium = _stub(stubs.ConsortiumStub, self._channel)
        self.transfer = _stub(stubs.TransferStub, self._channel)
        self.log = _stub(stubs.LogStub, self._channel)
        self.experts = _stub(stubs.ExpertsStub, self._channel)
        self.certificates = _stub(stubs.CertificatesStub, self._channel)


class EnrolmentConnection(_TlsConnection):
    """A connection to the enrolment port under a root that was checked before (:func:`fetch_root`); the host name is checked too.

    Attributes:
        enrolment: stub of ``elmgrove.v1.Enrolment``.
    """

    def __init__(self, host: str, port: int, *, root_pem: bytes) -> None:
        super().__init__(host, port, root_pem=root_pem, identity=None)
        self.enrolment = _stub(stubs.EnrolmentStub, self._channel)


def fetch_root(invitation: Invitation, *, at: datetime) -> TrustRoot:
    """Get the consortium's root certificate from the machine an invitation names, and check it before anything secret is sent.

    1. Take the server's leaf from a handshake that verifies nothing.
    2. Ask for the root over a channel that trusts that leaf alone, so that both come from one machine.
    3. The root's SHA-256 is the one in the invitation, and the leaf is a server certificate under that root.
    4. (The caller's duty) send the token only over :class:`EnrolmentConnection` under this root, which checks the host name.

    Raises:
        RootFingerprintError: another root than the invitation's.
        CertificateError: the server's certificate is not one of that root's.
        UnavailableError: nothing answers there.
    """
    host, port = invitation.host, invitation.enrol_port
    leaf_pem = _server_leaf(host, port)  # (1)
    with EnrolmentConnection(host, port, root_pem=leaf_pem) as connection:  # (2)
        reply: pb.TrustReply = connection.call(connection.enrolment.Trust, pb.TrustRequest(), timeout=CONNECT_SECONDS)
    if len(reply.root_der) > _MAX_ROOT_BYTES:
        raise RootFingerprintError("The machine at the invitation's address sent no root certificate.")
    root = TrustRoot.from_der(reply.root_der)  # (3)
    if root.fingerprint != invitation.root_sha256:
        raise RootFingerprintError(
            "The coordinator's root certificate is not the one the invitation names. Nothing was sent. "
            "Either someone stands between you and the coordinator, or the invitation is for another consortium: ask the operator."
        )
    verify_leaf(ssl.PEM_cert_to_DER_cert(leaf_pem.decode("ascii")), root, purpose="server", at=at)
    return root


def _stub(kind: Callable[[grpc.Channel], Any], channel: grpc.Channel) -> Any:
    return kind(channel)


def _server_leaf(host: str, port: int) -> bytes:
    try:
        return ssl.get_server_certificate((host.strip("[]"), port), timeout=CONNECT_SECONDS).encode("ascii")
    except OSError as error:
        raise UnavailableError(f"The coordinator does not answer at {host}, port {port}. Is it running, and is the port open?") from error


def _target(host: str, port: int) -> str:
    bare = host.strip("[]")
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return f"dns:///{bare}:{port}"
    return f"ipv6:[{bare}]:{port}" if address.version == 6 else f"ipv4:{bare}:{port}"
