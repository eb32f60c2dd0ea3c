"""The table of wire errors against the exception tree, and round trips through a real gRPC server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest

from common import errors
from common.errors import ElmgroveError, InternalError, ProtocolError, StorageError, TemplateError, UnavailableError
from common.rpc.errors import CODE_KEY, MAX_DETAIL, WIRE_ERRORS, error_from_rpc, wire_status
from common.rpc.limits import MAX_MESSAGE_BYTES
from coordinator.service.handling import handled

ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ElmgroveError)]


def test_every_error_class_is_in_the_table_and_no_other() -> None:
    assert set(WIRE_ERRORS) == set(ALL)


def test_codes_are_unique_and_no_status_means_success() -> None:
    assert len({kind.code for kind in ALL}) == len(ALL)
    assert all(wire.status is not grpc.StatusCode.OK for wire in WIRE_ERRORS.values())


@pytest.mark.parametrize("text", ["/home/x/blobs is full", "cannot read '/srv/a'", "path=/srv", "see file:/srv/a", "(/etc/passwd)"])
def test_a_message_with_a_path_stays_here(text: str) -> None:
    assert wire_status(TemplateError(text)).metadata == ((CODE_KEY, "template"),)


def test_a_message_about_the_request_travels_and_one_about_the_machine_does_not() -> None:
    assert b"model.layers.0" in dict(wire_status(TemplateError("model.layers.0 has shape [1, 2]")).metadata)["elmgrove-detail-bin"]
    assert len(wire_status(StorageError("No space left while writing blob")).metadata) == 1


def test_a_class_nobody_knows_becomes_an_internal_error() -> None:
    class OddError(ElmgroveError):
        pass

    assert wire_status(OddError("x")).status is grpc.StatusCode.INTERNAL


class _Failing:
    """A service whose every method raises what the test put there."""

    def __init__(self) -> None:
        self.error: Exception = ElmgroveError()

    @handled
    def method(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        raise self.error


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, failing: _Failing) -> None:
        self._failing = failing

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(self._failing.method)


@pytest.fixture
def wire() -> Iterator[tuple[_Failing, grpc.UnaryUnaryMultiCallable]]:
    failing = _Failing()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((_Handler(failing),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield failing, channel.unary_unary("/s/m")
    server.stop(0).wait()


def _call(method: grpc.UnaryUnaryMultiCallable, request: bytes = b"") -> ElmgroveError:
    with pytest.raises(grpc.RpcError) as caught:
        method(request, timeout=10)
    return error_from_rpc(caught.value)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_each_class_arrives_as_itself(kind: type[ElmgroveError], wire: tuple[_Failing, grpc.UnaryUnaryMultiCallable]) -> None:
    failing, method = wire
    failing.error = kind("tensor a.b is wrong")
    arrived = _call(method)
    assert type(arrived) is kind
    assert kind.public in str(arrived)
    assert ("tensor a.b is wrong" in str(arrived)) == WIRE_ERRORS[kind].detail


def test_a_bug_arrives_as_an_internal_error_without_its_text(wire: tuple[_Failing, grpc.UnaryUnaryMultiCallable]) -> None:
    failing, method = wire
    failing.error = ValueError("secret state")
    arrived = _call(method)
    assert type(arrived) is InternalError
    assert "secret" not in str(arrived)


def test_control_characters_of_a_hostile_coordinator_do_not_reach_the_terminal(
    wire: tuple[_Failing, grpc.UnaryUnaryMultiCallable],
) -> None:
    failing, method = wire
    failing.error = TemplateError("\x1b[2Jgone\r\n" + "x" * 5000)
    text = str(_call(method))
    assert "\x1b" not in text
    assert "\n" not in text
    assert len(text) < MAX_DETAIL + 200


def test_failures_of_grpc_itself_have_a_class(wire: tuple[_Failing, grpc.UnaryUnaryMultiCallable]) -> None:
    _, method = wire
    assert type(_call(method, b"x" * (MAX_MESSAGE_BYTES + 1))) is ProtocolError
    with grpc.insecure_channel("127.0.0.1:1") as nowhere:
        assert type(_call(nowhere.unary_unary("/s/m"))) is UnavailableError
