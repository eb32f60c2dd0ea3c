"""Why a TLS connection fails: gRPC says "unavailable" for everything below it, so one plain handshake finds the reason.

In TLS 1.3 a server refuses a client's certificate only after the client's side of the handshake is done; what is left to see is a
connection that closes, by alert or without a word, before the server's first HTTP/2 frame.
"""

from __future__ import annotations

import os
import socket
import ssl

from common.errors import CertificateError, ElmgroveError, UnauthenticatedError
from common.rpc.limits import CONNECT_SECONDS

__all__ = ["explain_unavailable"]


def explain_unavailable(host: str, port: int, root_pem: bytes, client_pem: bytes | None, *, otherwise: ElmgroveError) -> ElmgroveError:
    """The reason for a failed connection to ``host:port``.

    Args:
        host: name or address.
        port: TCP port.
        root_pem: what the server's certificate is verified under.
        client_pem: key and certificate of the client, PEM one after the other; None to show none.
        otherwise: returned if the handshake works or the machine does not answer.

    Returns:
        ``CertificateError`` if the server's certificate does not hold, ``UnauthenticatedError`` if ours was refused, else ``otherwise``.
    """
    try:
        with socket.create_connection((host.strip("[]"), port), timeout=CONNECT_SECONDS) as plain:
            return _shake_hands(plain, host, _context(root_pem, client_pem), otherwise)
    except OSError:
        return otherwise


def _shake_hands(plain: socket.socket, host: str, context: ssl.SSLContext, otherwise: ElmgroveError) -> ElmgroveError:
    try:
        secured = context.wrap_socket(plain, server_hostname=host.strip("[]"))
    except ssl.SSLCertVerificationError as error:
        return CertificateError(f"The machine at that address is not this consortium's coordinator: {error.verify_message}.")
    with secured:
        try:
            first = secured.recv(1)
        except (ssl.SSLError, ConnectionError):
            first = b""
        except TimeoutError:
            return otherwise
    return otherwise if first else UnauthenticatedError("The coordinator refused this machine's certificate in the TLS handshake.")


def _context(root_pem: bytes, client_pem: bytes | None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=root_pem.decode("ascii"))
    context.set_alpn_protocols(["h2"])
    if client_pem is not None:
        _load_from_memory(context, client_pem)
    return context


def _load_from_memory(context: ssl.SSLContext, client_pem: bytes) -> None:
    """The ssl module reads keys from files only; an anonymous file in memory keeps the key off the disk."""
    descriptor = os.memfd_create("elmgrove-identity", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, client_pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
