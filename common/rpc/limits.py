"""Sizes and times of the wire, each with its unit and reason."""

from __future__ import annotations

from typing import Final

__all__ = [
    "CALL_SECONDS",
    "CONNECT_SECONDS",
    "MAX_ENTRIES",
    "MAX_MESSAGE_BYTES",
    "MAX_OFFER_BYTES",
    "MAX_STREAMS",
    "PIECE_BYTES",
    "client_options",
    "server_options",
]

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024  # bytes; gRPC's own default, so that no peer needs a setting
MAX_OFFER_BYTES: Final = MAX_MESSAGE_BYTES - 64 * 1024  # bytes; bundle and manifest of one offer travel in one message
PIECE_BYTES: Final = 1024 * 1024  # bytes; 1 MiB was as fast as 4 MiB and needs less memory
MAX_ENTRIES: Final = 1000  # log entries in one answer; at 2 KiB each they stay under the message limit
MAX_STREAMS: Final = 16  # upload streams of one owner at a time; each holds a server thread and about 2 MiB
CALL_SECONDS: Final = 60.0  # deadline of a short call
CONNECT_SECONDS: Final = 10.0  # time for one TCP and TLS handshake

_CLIENT_KEEPALIVE_MS: Final = 30_000  # under the idle time-outs of common firewalls (60 s and up)
_SERVER_KEEPALIVE_MS: Final = 60_000
_KEEPALIVE_TIMEOUT_MS: Final = 20_000
_MIN_PING_INTERVAL_MS: Final = 10_000  # well under the client's interval, so that no honest client is cut off for pinging

Options = list[tuple[str, int]]


def client_options() -> Options:
    """Channel arguments of an owner's client."""
    return [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", _CLIENT_KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 10_000),
        ("grpc.use_local_subchannel_pool", 1),
    ]


def server_options() -> Options:
    """Server arguments of the coordinator."""
    return [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", _SERVER_KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.so_reuseport", 0),
    ]
