"""The coordinator as its operator runs it, owners over mutual TLS, each a process or connection of its own."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from common.errors import (
    CertificateError,
    ForbiddenError,
    InvitationRefusedError,
    NotFoundError,
    ProtocolError,
    QuotaError,
    RevokedError,
    RootFingerprintError,
    SignerError,
    UnauthenticatedError,
    UnavailableError,
    WithdrawnError,
    WrongAnchorError,
)
from common.formats.fields import utc_now
from common.rpc.channels import ClientIdentity, Connection, EnrolmentConnection, fetch_root
from common.rpc.errors import error_from_rpc
from common.rpc.limits import PIECE_BYTES
from common.rpc.v1 import elmgrove_pb2 as pb
from common.translog.checkpoint import verify_checkpoint
from common.translog.merkle import verify_consistency
from common.translog.proof import verify_receipt
from common.translog.reader import FolderReader, read_log
from common.trust.certificates import TrustRoot, issue_leaf, issue_root
from common.trust.keys import generate_signing_key, private_key_pem
from tests.support.coordinator_world import ROOT, Served, command, documents, environment, free_ports, offer, pieces, push, send, wait_until
from tests.support.owner_world import BIG, write_cheap_anchor, write_cheap_expert
from tests.support.tiny_manifests import expert_manifest, sha256


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    world = Served.found(folder)
    with world.running():
        yield world


@pytest.fixture(scope="module")
def anchor(served: Served, tmp_path_factory: pytest.TempPathFactory) -> str:
    return served.publish(tmp_path_factory.mktemp("anchor") / "checkpoint")


def test_an_expert_from_invitation_to_model_with_restarts_in_between(tmp_path: Path) -> None:
    world = Served.found(tmp_path)
    anchor = world.publish(tmp_path / "checkpoint")
    with world.running():
        anna = world.join("anna")
        package = anna.package(tmp_path / "p", anchor)
        with world.connect(anna) as connection:
            first = offer(connection, package)
            assert send(connection, package, first, stop_after=2) == 2
        assert world.stop(signal.SIGTERM) == 0
        world.start()
        with world.connect(anna) as connection:
            again = offer(connection, package)
            assert (again.upload_id, len(again.missing)) == (first.upload_id, len(first.missing) - 2)
            receipt = push(connection, package)
            assert verify_receipt(receipt.tlog_proof, receipt.entry, anna.log_key).index == receipt.index
            status = connection.call(connection.consortium.Status, pb.StatusRequest())
            assert [(expert.name, expert.status) for expert in status.experts] == [("tides", "in-force")]
        world.run("assemble", str(tmp_path / "all"), "--quiet")
        with world.connect(anna) as connection:
            envelope = anna.withdrawal("tides", sha256(documents(package)[1]))
            gone = connection.call(connection.experts.Withdraw, pb.WithdrawRequest(envelope=envelope))
            assert verify_receipt(gone.tlog_proof, gone.entry, anna.log_key).index == gone.index
            status = connection.call(connection.consortium.Status, pb.StatusRequest())
            assert [(use.manifest, list(use.experts)) for use in status.models] == [
                (sha256((tmp_path / "all" / "manifest.json").read_bytes()), ["tides@1"])
            ]
        assert world.stop(signal.SIGINT) == 0
    assert json.loads(world.run("experts", "--json"))[0]["status"] == "withdrawn"
    command("assemble", str(tmp_path / "never"), "--include", "tides", "--home", str(world.home), expect=WithdrawnError.exit_code)
    assert not (tmp_path / "never").exists()
    kinds = [entry["kind"] for entry in json.loads(world.run("log", "--json"))["entries"]]
    assert kinds == [
        "consortium-founded", "anchor-published", "owner-admitted", "expert-accepted", "model-assembled", "expert-withdrawn",
    ]  # fmt: skip
    assert read_log(FolderReader(world.home / "log"), anna.log_key).checkpoint.size == 6


def test_a_used_or_unknown_invitation(served: Served) -> None:
    invitation = served.invite("used")
    served.join("used", invitation)
    for wrong in (invitation, invitation.model_copy(update={"token": "x" * 43})):
        with pytest.raises(InvitationRefusedError):
            served.join("used", wrong)


def test_a_root_that_is_not_the_invitations(served: Served) -> None:
    invitation = served.invite("careful").model_copy(update={"root_sha256": "0" * 64})
    with pytest.raises(RootFingerprintError, match="Nothing was sent"):
        fetch_root(invitation, at=utc_now())


def test_a_machine_in_the_middle_learns_no_token(served: Served, tmp_path: Path) -> None:
    """It shows its own certificate and relays the true root: its leaf is not under that root."""
    key = generate_signing_key()
    false_root = TrustRoot.from_der(issue_root("grove", key, utc_now()).public_bytes(Encoding.DER))
    leaf_key = generate_signing_key()
    leaf = issue_leaf(false_root, key, leaf_key.public_key(), "server", "elmgrove://grove/server", utc_now(), 30, ("127.0.0.1",))
    true_root = x509.load_pem_x509_certificate((served.home / "certs/root.pem").read_bytes()).public_bytes(Encoding.DER)
    calls: list[str] = []

    class Relay(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            calls.append(details.method)
            return grpc.unary_unary_rpc_method_handler(lambda *_: pb.TrustReply(root_der=true_root).SerializeToString())

    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((Relay(),))
    pair = (private_key_pem(leaf_key, None), leaf.public_bytes(Encoding.PEM))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    try:
        invitation = served.invite("watched").model_copy(update={"enrol_port": port})
        with pytest.raises(CertificateError):
            served.join("watched", invitation)
    finally:
        server.stop(0).wait()
    assert calls == ["/elmgrove.v1.Enrolment/Trust"]


def test_callers_without_a_certificate_or_with_a_foreign_or_wrong_one(served: Served) -> None:
    anna = served.join("lonely")
    foreign_key = generate_signing_key()
    foreign_root = TrustRoot.from_der(issue_root("grove", foreign_key, utc_now()).public_bytes(Encoding.DER))
    key = generate_signing_key()
    leaf = issue_leaf(foreign_root, foreign_key, key.public_key(), "transport", anna.uri, utc_now(), 30)
    foreign = ClientIdentity(private_key_pem(key, None), leaf.public_bytes(Encoding.PEM))
    signing = ClientIdentity(private_key_pem(anna.signing_key, None), anna.signing_certificate.public_bytes(Encoding.PEM))
    for identity in (None, foreign, signing):
        with (
            Connection("127.0.0.1", served.port, root_pem=anna.root_pem, identity=identity) as connection,
            pytest.raises(UnauthenticatedError),
        ):
            connection.call(connection.consortium.Status, pb.StatusRequest())


def test_a_coordinator_that_is_not_ours_or_not_there(served: Served) -> None:
    anna = served.join("wary")
    other = issue_root("grove", generate_signing_key(), utc_now()).public_bytes(Encoding.PEM)
    with Connection("127.0.0.1", served.port, root_pem=other, identity=anna.identity) as connection, pytest.raises(CertificateError):
        connection.call(connection.consortium.Status, pb.StatusRequest())
    with Connection("127.0.0.1", 1, root_pem=anna.root_pem, identity=anna.identity) as connection, pytest.raises(UnavailableError):
        connection.call(connection.consortium.Status, pb.StatusRequest())
    with EnrolmentConnection("localhost", served.enrol_port, root_pem=anna.root_pem) as connection:
        connection.call(connection.enrolment.Trust, pb.TrustRequest())


def test_with_anothers_certificate_one_acts_as_that_other_only(served: Served, anchor: str, tmp_path: Path) -> None:
    cleo, dora = served.join("cleo"), served.join("dora")
    package = cleo.package(tmp_path / "p", anchor, name="cleos")
    with served.connect(cleo) as connection:
        mine = offer(connection, package)
    with served.connect(dora) as connection:
        with pytest.raises(SignerError):
            offer(connection, package)
        for method in (connection.transfer.Commit, connection.transfer.Abandon):
            request = pb.CommitRequest if method is connection.transfer.Commit else pb.AbandonRequest
            with pytest.raises(NotFoundError):
                connection.call(method, request(upload_id=mine.upload_id))
        with pytest.raises(NotFoundError):
            send(connection, package, mine)
        with pytest.raises(ForbiddenError):
            offer(connection, dora.package(tmp_path / "q", anchor, name="doras", owner="cleo"))
        part = next(iter((json.loads((package / "manifest.json").read_text()))["files"]))["sha256"]
        with connection.translated(), pytest.raises(grpc.RpcError):
            list(connection.transfer.Download(pb.DownloadRequest(sha256=part)))


def test_errors_travel_with_their_class_and_without_paths(served: Served, tmp_path: Path) -> None:
    emma = served.join("emma")
    with served.connect(emma) as connection:
        with pytest.raises(WrongAnchorError, match="published anchor") as caught:
            offer(connection, emma.package(tmp_path / "p", "ab" * 32, name="emmas"))
        assert str(served.home) not in str(caught.value)
        with pytest.raises(NotFoundError):
            connection.call(connection.log.Document, pb.DocumentRequest(sha256="0" * 64))
        with pytest.raises(ProtocolError):
            connection.call(connection.transfer.Offer, pb.OfferRequest(bundle=bytes(5 * 2**20)))
    last = json.loads((served.home / "audit.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["refused"], last["owner"]) == ("offer", "wrong-anchor", "emma")


def _stream(connection: Connection, *messages: pb.UploadMessage) -> None:
    with connection.translated():
        list(connection.transfer.Upload(iter(messages), timeout=20))


def test_upload_streams_out_of_order(served: Served, anchor: str, tmp_path: Path) -> None:
    fred = served.join("fred")
    package = fred.package(tmp_path / "p", anchor, name="freds")
    with served.connect(fred) as connection:
        reply = offer(connection, package)
        header = pb.UploadMessage(header=pb.UploadHeader(upload_id=reply.upload_id))
        (file, chunk), _, data = next(iter(pieces(package, [(0, 0)])))
        good = pb.UploadPiece(file=file, chunk=chunk, offset=0, data=data)
        half = pb.UploadPiece(file=file, chunk=chunk, offset=0, data=data[: len(data) // 2])
        wrong: list[list[pb.UploadMessage]] = [
            [],
            [pb.UploadMessage()],
            [pb.UploadMessage(piece=good)],
            [header, header],
            [header, pb.UploadMessage(piece=pb.UploadPiece(file=99))],
            [header, pb.UploadMessage(piece=pb.UploadPiece(file=file, chunk=chunk, offset=1, data=b"x"))],
            [header, pb.UploadMessage(piece=half), pb.UploadMessage(piece=pb.UploadPiece(file=1, chunk=0, data=b"x"))],
            [header, pb.UploadMessage(piece=pb.UploadPiece(file=file, chunk=chunk, data=bytes(PIECE_BYTES + 1)))],
        ]
        for messages in wrong:
            with pytest.raises(ProtocolError):
                _stream(connection, *messages)
        assert len(offer(connection, package).missing) == len(reply.missing)
        push(connection, package)


def test_a_cut_connection_and_a_killed_coordinator_lose_at_most_the_chunk_in_flight(tmp_path: Path) -> None:
    world = Served.found(tmp_path)
    write_cheap_anchor(tmp_path / "checkpoint", BIG)
    anchor = world.run("anchor", "publish", str(tmp_path / "checkpoint"), "--name", "big", "--quiet").split("Digest ")[1].strip()
    with world.running():
        anna = world.join("anna")
        package = tmp_path / "p"
        write_cheap_expert(package, BIG, seed=1)
        expert_manifest(package, anchor, name="tides", owner="anna", consortium="grove")
        anna.sign(package)
        with world.connect(anna) as connection:
            reply = offer(connection, package)
            go, acknowledged = threading.Event(), 0
            wanted = [(ref.file, ref.chunk) for ref in reply.missing]

            def messages() -> Iterator[pb.UploadMessage]:
                yield pb.UploadMessage(header=pb.UploadHeader(upload_id=reply.upload_id))
                for count, ((file, chunk), offset, data) in enumerate(pieces(package, wanted)):
                    yield pb.UploadMessage(piece=pb.UploadPiece(file=file, chunk=chunk, offset=offset, data=data))
                    if count == 40:
                        go.wait(60)

            with pytest.raises(UnavailableError), connection.translated():
                for _ in connection.transfer.Upload(messages(), timeout=120):
                    acknowledged += 1
                    if acknowledged == 2:
                        assert world.process is not None
                        world.stop(signal.SIGKILL)
                        go.set()
        world.start()
        with world.connect(anna) as connection:
            again = connection.call(
                connection.transfer.Offer,
                pb.OfferRequest(bundle=documents(package)[0], manifest=documents(package)[1]),
                patience=20,
            )
            assert again.upload_id == reply.upload_id
            assert len(wanted) - 3 <= len(again.missing) <= len(wanted) - 2
            receipt = push(connection, package)
        assert json.loads(world.run("experts", "--json"))[0]["index"] == receipt.index
    assert list((world.home / "uploads").iterdir()) == []


def test_the_log_over_the_wire_is_the_log_on_the_disk(served: Served) -> None:
    gina = served.join("gina")
    with served.connect(gina) as connection:
        old = verify_checkpoint(connection.call(connection.log.Checkpoint, pb.CheckpointRequest()).checkpoint, gina.log_key)
        served.join("hans")
        reply = connection.call(connection.log.Consistency, pb.ConsistencyRequest(old_size=old.size))
        new = verify_checkpoint(reply.checkpoint, gina.log_key)
        verify_consistency(old.size, new.size, list(reply.proof), old.root, new.root)
        entries = connection.call(connection.log.Entries, pb.EntriesRequest(start=0, limit=0))
        assert tuple(entries.entries) == read_log(FolderReader(served.home / "log"), gina.log_key).entries
        part = connection.call(connection.log.Entries, pb.EntriesRequest(start=1, limit=2))
        assert list(part.entries) == list(entries.entries)[1:3]
        assert list(connection.call(connection.log.Entries, pb.EntriesRequest(start=10**6)).entries) == []
        receipt = connection.call(connection.log.Inclusion, pb.InclusionRequest(index=0))
        assert verify_receipt(receipt.tlog_proof, entries.entries[0], gina.log_key).index == 0


def test_an_anchor_comes_down_in_pieces_from_any_offset(served: Served, anchor: str) -> None:
    ivan = served.join("ivan")
    with served.connect(ivan) as connection:
        manifest = json.loads(connection.call(connection.log.Document, pb.DocumentRequest(sha256=anchor)).document)
        for entry in manifest["files"]:
            got = list(connection.transfer.Download(pb.DownloadRequest(sha256=entry["sha256"])))
            assert got[0].size == entry["size"]
            whole = b"".join(piece.data for piece in got)
            assert sha256(whole) == entry["sha256"]
            half = entry["size"] // 2
            rest = connection.transfer.Download(pb.DownloadRequest(sha256=entry["sha256"], offset=half))
            assert b"".join(piece.data for piece in rest) == whole[half:]


def test_a_revoked_owner_is_turned_away_at_once(served: Served) -> None:
    kate = served.join("kate")
    with served.connect(kate) as connection:
        connection.call(connection.consortium.Status, pb.StatusRequest())
        served.run("owners", "revoke", "kate", "--reason", "left", "--yes")
        with pytest.raises(RevokedError):
            connection.call(connection.consortium.Status, pb.StatusRequest())


def test_more_streams_than_one_owner_may_have(served: Served, anchor: str, tmp_path: Path) -> None:
    lena = served.join("lena")
    package = lena.package(tmp_path / "p", anchor, name="lenas")
    stop = threading.Event()
    with served.connect(lena) as connection:
        reply = offer(connection, package)

        def idle() -> Iterator[pb.UploadMessage]:
            yield pb.UploadMessage(header=pb.UploadHeader(upload_id=reply.upload_id))
            stop.wait(30)

        streams = [connection.transfer.Upload(idle(), timeout=60) for _ in range(10)]
        try:
            wait_until(lambda: sum(stream.done() for stream in streams) == 2)
            refused = [error_from_rpc(stream) for stream in streams if stream.done()]
            assert {type(error) for error in refused} == {QuotaError}
        finally:
            stop.set()
            for stream in streams:
                stream.cancel()
        wait_until(lambda: _sends(connection, package, reply))


def _sends(connection: Connection, package: Path, reply: pb.OfferReply) -> bool:
    try:
        return send(connection, package, reply) == len(reply.missing)
    except QuotaError:
        return False


def test_a_taken_port_is_named_and_the_first_coordinator_goes_on(served: Served) -> None:
    error = command("serve", "--home", str(served.home), expect=15).stderr
    assert str(served.port) in error
    served.run("owners")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        free = served.port + 2 if served.port + 2 != served.enrol_port else served.port + 3
        error = command("serve", "--home", str(served.home), "--port", str(free), "--enrol-port", str(port), expect=15).stderr
        assert str(port) in error


def test_commands_beside_a_running_server_see_and_write_the_same_log(served: Served, anchor: str, tmp_path: Path) -> None:
    mona = served.join("mona")
    with served.connect(mona) as connection:
        push(connection, mona.package(tmp_path / "p", anchor, name="monas"))
        summary = json.loads(served.run("assemble", str(tmp_path / "model"), "--include", "monas", "--json"))
        assert [slot["name"] for slot in summary["experts"]] == ["monas"]
        status = connection.call(connection.consortium.Status, pb.StatusRequest())
        assert [use.index for use in status.models] == [summary["index"]]


_TIGHT = """
import sys
from pathlib import Path
from tests.support.coordinator_world import Grove, documents
from tests.support.tiny_weights import TinyShape
from common.errors import StorageError
shape = TinyShape(hidden=64, inner=512, layers=2)
grove = Grove(Path(sys.argv[1]))
anna = grove.join("anna")
anchor = grove.publish(shape=shape)
package = anna.package(Path(sys.argv[2]) / "p", anchor, shape=shape)
ballast = Path(sys.argv[1]) / "ballast"
try:
    with ballast.open("wb", buffering=0) as out:
        while out.write(bytes(4096)):
            pass
except OSError:
    pass
try:
    grove.offer(anna, package)
except StorageError as error:
    print("refused:", error)
assert grove.debris() == [], grove.debris()
ballast.unlink()
grove.push(anna, package)
print("accepted")
"""


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    script = f'mount -t tmpfs -o size=6m tmpfs "{tmp_path}/small" && exec "$@"'
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no user namespaces here to mount a small disk in")
    arguments = [sys.executable, "-c", _TIGHT, str(tmp_path / "small"), str(tmp_path)]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *arguments], check=False, capture_output=True, text=True, env=environment(), cwd=ROOT
    )
    if "mount:" in done.stderr:
        pytest.skip("mounting is not allowed here")
    assert done.returncode == 0, done.stderr
    assert "refused: No space is left" in done.stdout
    assert "accepted" in done.stdout


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    world = Served.found(tmp_path)
    write_cheap_anchor(tmp_path / "checkpoint", BIG)
    anchor = world.run("anchor", "publish", str(tmp_path / "checkpoint"), "--name", "big", "--quiet").split("Digest ")[1].strip()
    with world.running():
        anna = world.join("anna")
        package = tmp_path / "p"
        write_cheap_expert(package, BIG, seed=1)
        expert_manifest(package, anchor, name="tides", owner="anna", consortium="grove")
        anna.sign(package)
        with world.connect(anna) as connection:
            connection.call(connection.consortium.Status, pb.StatusRequest())
            assert world.process is not None
            idle = _peak_bytes(world.process.pid)
            push(connection, package)
            assert _peak_bytes(world.process.pid) - idle < 64 * 2**20


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def test_a_passphrase_guards_the_keys(tmp_path: Path) -> None:
    home = tmp_path / "home"
    command("init", str(home), "--name", "grove", ELMGROVE_PASSPHRASE="correct horse")
    assert b"ENCRYPTED" in (home / "keys" / "root.pem").read_bytes()
    command("invite", "anna", "--home", str(home), expect=35)
    command("invite", "anna", "--home", str(home), expect=35, ELMGROVE_PASSPHRASE="wrong")
    secret = tmp_path / "secret"
    secret.write_text("correct horse\n")
    command("invite", "anna", "--home", str(home), "--passphrase-file", str(secret))
    command("log", "--home", str(home))
    assert (home / "keys" / "root.pem").stat().st_mode & 0o077 == 0


def test_the_log_over_plain_http_is_the_folder_and_nothing_else_is_there(served: Served, tmp_path: Path) -> None:
    web_port, port, enrol_port = *free_ports(), free_ports()[0]
    arguments = [sys.executable, "-m", "coordinator.cli.main", "serve", "--home", str(served.home)]
    ports = ["--port", str(port), "--enrol-port", str(enrol_port), "--web-port", str(web_port)]
    process = subprocess.Popen([*arguments, *ports], env=environment(), stdout=subprocess.PIPE, text=True)

    def get(path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", web_port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    class HttpReader:
        def fetch(self, path: str) -> bytes:
            status, body = get(f"/log/{path}")
            if status != 200:
                raise NotFoundError
            return body

    try:
        assert process.stdout is not None
        assert "/log/" in process.stdout.readline()
        key = (served.home / "certs/log.vkey").read_text().strip()
        assert read_log(HttpReader(), key).entries == read_log(FolderReader(served.home / "log"), key).entries
        assert get("/healthz") == (200, b"ok\n")
        for path in (
            "/",
            "/log/",
            "/log/lock",
            "/log/../keys/root.pem",
            "/log/%2e%2e/keys/root.pem",
            "/state.db",
            "/log/tile/0/../../lock",
        ):
            assert get(path)[0] == 404
        with socket.create_connection(("127.0.0.1", web_port)) as rude:
            rude.sendall(b"POST /healthz HTTP/1.1\r\n\r\n")
            assert b"501" in rude.recv(100)
    finally:
        process.terminate()
        assert process.wait(30) == 0
        assert process.stdout is not None
        process.stdout.close()


def _interrupted(world: Served, traces: Callable[[], bool], *arguments: str) -> None:
    """Start a command, stop it in the middle by Ctrl-C, and check its exit code."""
    process = subprocess.Popen(
        [sys.executable, "-m", "coordinator.cli.main", *arguments, "--home", str(world.home)],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    while not traces() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130, complaint
    assert "Traceback" not in complaint


def test_ctrl_c_in_publish_and_assemble_leaves_nothing(tmp_path: Path) -> None:
    world = Served.found(tmp_path)
    write_cheap_anchor(tmp_path / "checkpoint", BIG)
    arguments = ("anchor", "publish", str(tmp_path / "checkpoint"), "--name", "big", "--quiet")
    _interrupted(world, lambda: any(world.home.glob(".anchor-*")), *arguments)
    assert [path.name for path in world.home.iterdir() if path.name.startswith(".")] == []
    assert [path for path in (world.home / "blobs").rglob("*") if path.is_file()] == []
    world.run(*arguments)
    (tmp_path / "models").mkdir()
    _interrupted(world, lambda: any((tmp_path / "models").iterdir()), "assemble", str(tmp_path / "models" / "all"), "--quiet")
    assert list((tmp_path / "models").iterdir()) == []
    world.run("assemble", str(tmp_path / "models" / "all"), "--quiet")
