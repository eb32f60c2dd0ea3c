"""A coordinator's home with a random anchor, and owners who speak to it: by use case in this process, or by gRPC to a served one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from common.formats.fields import format_time, owner_uri, utc_now
from common.formats.invitation import Invitation, decode_invitation
from common.formats.limits import CHUNK_BYTES
from common.formats.manifest import ExpertManifest
from common.formats.statements import ExpertWithdrawn
from common.formats.strictjson import parse_document
from common.ledger.state import OwnerState
from common.rpc.channels import ClientIdentity, Connection, EnrolmentConnection, fetch_root
from common.rpc.limits import PIECE_BYTES
from common.rpc.v1 import elmgrove_pb2 as pb
from common.trust.certificates import make_csr
from common.trust.keys import generate_signing_key, private_key_pem
from common.trust.statements import sign_statement
from coordinator.config import Home
from coordinator.store.uploads import ChunkKey
from coordinator.usecases.context import Coordinator, open_coordinator
from coordinator.usecases.enrol import enrol
from coordinator.usecases.found import found_consortium
from coordinator.usecases.invite import invite
from coordinator.usecases.publish_anchor import publish_anchor
from coordinator.usecases.receive import ChunkReceiver
from coordinator.usecases.uploads import commit_upload, offer_upload
from tests.support.signing import sign_folder
from tests.support.tiny_manifests import expert_manifest
from tests.support.tiny_weights import TINY, TinyShape, write_anchor_files, write_expert_files

ROOT = Path(__file__).resolve().parents[2]
CONSORTIUM = "grove"


@dataclass
class Member:
    """One owner's keys and certificates, and the packages it makes."""

    name: str
    signing_key: ec.EllipticCurvePrivateKey
    signing_certificate: x509.Certificate
    transport_key: ec.EllipticCurvePrivateKey
    transport_der: bytes
    root_pem: bytes
    log_key: str

    @property
    def uri(self) -> str:
        return owner_uri(CONSORTIUM, self.name)

    @property
    def identity(self) -> ClientIdentity:
        certificate = x509.load_der_x509_certificate(self.transport_der)
        return ClientIdentity(private_key_pem(self.transport_key, None), certificate.public_bytes(Encoding.PEM))

    def package(
        self,
        folder: Path,
        anchor: str,
        *,
        name: str = "tides",
        version: int = 1,
        supersedes: str | None = None,
        shape: TinyShape = TINY,
        owner: str | None = None,
        seed: int = 1,
    ) -> Path:
        """A signed package of random tensors."""
        write_expert_files(folder, shape, seed=seed, parts=2)
        expert_manifest(folder, anchor, name=name, owner=owner or self.name, version=version, supersedes=supersedes, consortium=CONSORTIUM)
        return self.sign(folder)

    def sign(self, folder: Path) -> Path:
        (folder / "model.sig").unlink(missing_ok=True)
        (folder / "model.sig").write_bytes(sign_folder(folder, self.signing_key, self.signing_certificate))
        return folder

    def withdrawal(self, expert: str, manifest: str, *, owner: str | None = None, reason: str = "the patients said no") -> bytes:
        statement = ExpertWithdrawn(
            schema="elmgrove.expert-withdrawn/v1",
            consortium=CONSORTIUM,
            created=format_time(utc_now()),
            owner=owner or self.uri,
            expert=expert,
            manifest=manifest,
            reason=reason,
        )
        return sign_statement(statement, self.signing_key, self.signing_certificate)


def documents(folder: Path) -> tuple[bytes, bytes]:
    """A package's signature and manifest."""
    return (folder / "model.sig").read_bytes(), (folder / "manifest.json").read_bytes()


def pieces(folder: Path, missing: Iterable[ChunkKey], piece: int = PIECE_BYTES) -> Iterator[tuple[ChunkKey, int, bytes]]:
    """The pieces of the chunks ``missing`` of a package."""
    manifest = parse_document(ExpertManifest, (folder / "manifest.json").read_bytes())
    for file, chunk in missing:
        with (folder / manifest.files[file].name).open("rb") as stream:
            stream.seek(chunk * CHUNK_BYTES)
            offset = 0
            while data := stream.read(min(piece, CHUNK_BYTES - offset)):
                yield (file, chunk), offset, data
                offset += len(data)


def free_ports() -> tuple[int, int]:
    """Two TCP ports nobody listens on now."""
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return int(first.getsockname()[1]), int(second.getsockname()[1])


class Grove:
    """A founded consortium, opened in this process; :meth:`push` and friends go through the use cases."""

    def __init__(self, folder: Path, *, passphrase: bytes | None = None) -> None:
        self.folder = folder
        self.home = Home(folder / "home")
        self.port, self.enrol_port = free_ports()
        found_consortium(
            self.home.path, name=CONSORTIUM, host="127.0.0.1", port=self.port, enrol_port=self.enrol_port, passphrase=passphrase
        )
        self.coordinator: Coordinator = open_coordinator(self.home, passphrase)

    def close(self) -> None:
        self.coordinator.close()

    def reopen(self) -> None:
        self.coordinator.close()
        self.coordinator = open_coordinator(self.home, None)

    def invitation(self, owner: str) -> Invitation:
        return decode_invitation(invite(self.coordinator, owner, valid_for=timedelta(hours=1)))

    def join(self, name: str) -> Member:
        signing, transport, uri = generate_signing_key(), generate_signing_key(), owner_uri(CONSORTIUM, name)
        token = self.invitation(name).token
        admission = enrol(self.coordinator, token=token, signing_csr=make_csr(signing, uri), transport_csr=make_csr(transport, uri))
        return Member(
            name,
            signing,
            x509.load_der_x509_certificate(admission.signing_der),
            transport,
            admission.transport_der,
            self.home.root.read_bytes(),
            self.coordinator.log_key,
        )

    def owner(self, name: str) -> OwnerState:
        return self.coordinator.ledger.state().owners[name]

    def publish(self, name: str = "base", shape: TinyShape = TINY, seed: int = 0) -> str:
        checkpoint = self.folder / f"checkpoint-{name}"
        write_anchor_files(checkpoint, shape, seed=seed)
        published = publish_anchor(
            self.coordinator, checkpoint, name=name, licence="CC0", provenance="random", sample=["a b"], sample_bytes=100, measure=None
        )
        return published.digest

    def offer(self, member: Member, package: Path) -> str:
        bundle, manifest = documents(package)
        return offer_upload(self.coordinator, self.owner(member.name), bundle=bundle, manifest_raw=manifest).upload_id

    def send(self, member: Member, package: Path, upload: str, *, skip: Sequence[ChunkKey] = ()) -> None:
        bundle, manifest = documents(package)
        missing = offer_upload(self.coordinator, self.owner(member.name), bundle=bundle, manifest_raw=manifest).missing
        with ChunkReceiver(self.coordinator, self.owner(member.name), upload) as receiver:
            for key, offset, data in pieces(package, [key for key in missing if key not in skip]):
                receiver.feed(key, offset, data)

    def push(self, member: Member, package: Path) -> int:
        """Offer, send and commit; returns the entry's index."""
        upload = self.offer(member, package)
        self.send(member, package, upload)
        return commit_upload(self.coordinator, self.owner(member.name), upload).index

    def debris(self) -> list[str]:
        """Whatever an upload might have left: files in ``uploads`` and blobs that no logged manifest names."""
        state = self.coordinator.ledger.state()
        manifests = [anchor.manifest for anchor in state.anchors.values()]
        manifests += [version.manifest for versions in state.experts.values() for version in versions]
        named = {entry.sha256 for manifest in manifests for entry in manifest.files}
        blobs = [path.name for path in self.home.blobs.rglob("*") if path.is_file() and path.name not in named]
        return blobs + [path.name for path in self.home.uploads.iterdir()]


def environment(**extra: str) -> dict[str, str]:
    """What our processes see: no home, no passphrase, no proxy of the machine that runs the tests."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | extra


def command(*arguments: str, expect: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``elmgrove-coordinator`` to its end and check its exit code; a traceback is never right."""
    done = subprocess.run(
        [sys.executable, "-m", "coordinator.cli.main", *arguments],
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == expect, f"exit code {done.returncode}, not {expect}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


class Served:
    """A home served by a process of its own, the way an operator does it."""

    def __init__(self, home: Path, port: int, enrol_port: int) -> None:
        self.home, self.port, self.enrol_port = home, port, enrol_port
        self.process: subprocess.Popen[str] | None = None

    @classmethod
    def found(cls, folder: Path, *, host: str = "127.0.0.1") -> Served:
        port, enrol_port = free_ports()
        home = folder / "home"
        command("init", str(home), "--name", CONSORTIUM, "--host", host, "--port", str(port), "--enrol-port", str(enrol_port))
        return cls(home, port, enrol_port)

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "coordinator.cli.main", "serve", "--home", str(self.home)],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline().startswith(f"Consortium {CONSORTIUM}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        code = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None
        return code

    @contextlib.contextmanager
    def running(self) -> Iterator[Served]:
        self.start()
        try:
            yield self
        finally:
            if self.process is not None:
                self.stop()

    def run(self, *arguments: str, expect: int = 0) -> str:
        return command(*arguments, "--home", str(self.home), expect=expect).stdout

    def invite(self, owner: str) -> Invitation:
        return decode_invitation(self.run("invite", owner))

    def publish(self, folder: Path, name: str = "base", shape: TinyShape = TINY) -> str:
        write_anchor_files(folder, shape)
        return self.run("anchor", "publish", str(folder), "--name", name).split("Digest ")[1].strip()

    def join(self, name: str, invitation: Invitation | None = None) -> Member:
        """Enrol over the wire, pinned by the invitation."""
        wanted = invitation or self.invite(name)
        root = fetch_root(wanted, at=utc_now())
        root_pem = root.certificate.public_bytes(Encoding.PEM)
        signing, transport = generate_signing_key(), generate_signing_key()
        uri = owner_uri(CONSORTIUM, name)
        request = pb.JoinRequest(token=wanted.token, signing_csr_der=make_csr(signing, uri), transport_csr_der=make_csr(transport, uri))
        with EnrolmentConnection(wanted.host, wanted.enrol_port, root_pem=root_pem) as connection:
            reply = connection.call(connection.enrolment.Join, request)
        signing_certificate = x509.load_der_x509_certificate(reply.signing_certificate_der)
        return Member(name, signing, signing_certificate, transport, reply.transport_certificate_der, root_pem, reply.log_key)

    def connect(self, member: Member) -> Connection:
        return Connection("127.0.0.1", self.port, root_pem=member.root_pem, identity=member.identity)


def offer(connection: Connection, package: Path) -> pb.OfferReply:
    """Offer a package over the wire."""
    bundle, manifest = documents(package)
    return connection.call(connection.transfer.Offer, pb.OfferRequest(bundle=bundle, manifest=manifest))


def send(connection: Connection, package: Path, reply: pb.OfferReply, *, stop_after: int | None = None) -> int:
    """Send the missing chunks over one stream, or the first ``stop_after`` of them; returns how many were acknowledged."""
    missing = [(ref.file, ref.chunk) for ref in reply.missing][:stop_after]

    def messages() -> Iterator[pb.UploadMessage]:
        yield pb.UploadMessage(header=pb.UploadHeader(upload_id=reply.upload_id))
        for (file, chunk), offset, data in pieces(package, missing):
            yield pb.UploadMessage(piece=pb.UploadPiece(file=file, chunk=chunk, offset=offset, data=data))

    with connection.translated():
        return sum(1 for _ in connection.transfer.Upload(messages(), timeout=60))


def push(connection: Connection, package: Path) -> pb.Receipt:
    """Offer, send and commit over the wire."""
    reply = offer(connection, package)
    send(connection, package, reply)
    return connection.call(connection.transfer.Commit, pb.CommitRequest(upload_id=reply.upload_id))


def copy_package(source: Path, target: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(source, target)
    return target


def wait_until(condition: object, *, seconds: float = 20.0) -> None:
    """Look every few milliseconds until ``condition()`` holds."""
    deadline = time.monotonic() + seconds
    assert callable(condition)
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
