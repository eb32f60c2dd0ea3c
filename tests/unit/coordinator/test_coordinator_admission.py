"""Admission through the use cases: what is taken, what is refused and why, and that a refusal leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from common.errors import (
    AlreadyExistsError,
    DigestError,
    ElmgroveError,
    ForbiddenError,
    FormatError,
    IncompleteUploadError,
    InvitationRefusedError,
    LayoutError,
    LimitError,
    NonFiniteError,
    NotFoundError,
    QuotaError,
    RevokedError,
    SafetensorsError,
    SignatureError,
    SignerError,
    StorageError,
    TemplateError,
    UnauthenticatedError,
    UsageError,
    VersionError,
    WithdrawnError,
    WrongAnchorError,
)
from common.formats.fields import owner_uri
from common.rpc.limits import MAX_OFFER_BYTES, PIECE_BYTES
from common.translog.proof import verify_receipt
from common.translog.reader import FolderReader, read_log
from common.trust.certificates import make_csr
from common.trust.keys import generate_signing_key
from coordinator.config import parse_config, save_config
from coordinator.usecases.assemble import assemble_model
from coordinator.usecases.download import open_download
from coordinator.usecases.enrol import enrol
from coordinator.usecases.identity import authenticate
from coordinator.usecases.invite import invite
from coordinator.usecases.publish_anchor import publish_anchor
from coordinator.usecases.receive import ChunkReceiver
from coordinator.usecases.revoke import revoke_owner
from coordinator.usecases.status import owner_status
from coordinator.usecases.uploads import abandon_upload, commit_upload, offer_upload
from coordinator.usecases.withdraw import withdraw_expert
from tests.support.coordinator_world import CONSORTIUM, Grove, Member, documents, pieces
from tests.support.tiny_manifests import expert_manifest, sha256
from tests.support.tiny_weights import TinyShape, read_safetensors, write_anchor_files, write_expert_files, write_safetensors


@pytest.fixture
def anchor(grove: Grove) -> str:
    return grove.publish()


def _refused(grove: Grove, member: Member, package: Path, kind: type[ElmgroveError], match: str | None = None) -> None:
    """The package is refused with ``kind``; nothing of it stays but a line in the audit trail."""
    entries = grove.coordinator.ledger.state().size
    with pytest.raises(kind, match=match):
        grove.push(member, package)
    assert grove.debris() == []
    assert grove.coordinator.uploads.open_of(member.name) == []
    assert grove.coordinator.ledger.state().size == entries
    last = json.loads(grove.home.audit.read_text().splitlines()[-1])
    assert last["refused"] == kind.code
    assert last["owner"] == member.name


# --- what is taken ----------------------------------------------------------------------------------------------------


def test_a_good_package_enters_the_log_with_a_receipt_that_holds(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    package = anna.package(tmp_path / "p", anchor)
    index = grove.push(anna, package)
    receipt = grove.coordinator.ledger.view.receipt(index)
    assert verify_receipt(receipt.proof, receipt.entry, grove.coordinator.log_key).index == index
    assert sha256(documents(package)[0]) in receipt.entry.decode()
    expert = grove.coordinator.ledger.state().experts["tides"][0]
    assert (expert.status, expert.digest) == ("in-force", sha256(documents(package)[1]))
    assert all(grove.coordinator.blobs.has(entry.sha256) for entry in expert.manifest.files)
    assert grove.debris() == []
    assert read_log(FolderReader(grove.home.log), grove.coordinator.log_key).checkpoint.size == index + 1


def test_the_same_package_twice_is_one_entry(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    package = anna.package(tmp_path / "p", anchor)
    upload = grove.offer(anna, package)
    grove.send(anna, package, upload)
    first = commit_upload(grove.coordinator, grove.owner("anna"), upload)
    again = commit_upload(grove.coordinator, grove.owner("anna"), upload)
    bundle, manifest = documents(package)
    offered = offer_upload(grove.coordinator, grove.owner("anna"), bundle=bundle, manifest_raw=manifest)
    assert (first.index, first.entry) == (again.index, again.entry)
    assert offered.receipt is not None
    assert offered.receipt.index == first.index
    assert grove.coordinator.ledger.state().size == first.index + 1


def test_an_upload_goes_on_after_a_restart_where_it_was(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    package = anna.package(tmp_path / "p", anchor)
    bundle, manifest = documents(package)
    offered = offer_upload(grove.coordinator, grove.owner("anna"), bundle=bundle, manifest_raw=manifest)
    last = offered.missing[-1]
    grove.send(anna, package, offered.upload_id, skip=[last])
    with pytest.raises(IncompleteUploadError, match="1 chunks"):
        commit_upload(grove.coordinator, grove.owner("anna"), offered.upload_id)
    grove.reopen()
    resumed = offer_upload(grove.coordinator, grove.owner("anna"), bundle=bundle, manifest_raw=manifest)
    assert (resumed.upload_id, resumed.missing) == (offered.upload_id, (last,))
    grove.push(anna, package)


def test_versions_follow_each_other_and_withdrawal_ends_them(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    first = anna.package(tmp_path / "p1", anchor)
    grove.push(anna, first)
    second = anna.package(tmp_path / "p2", anchor, version=2, supersedes=sha256(documents(first)[1]), seed=2)
    grove.push(anna, second)
    assert [expert.status for expert in grove.coordinator.ledger.state().experts["tides"]] == ["superseded", "in-force"]
    envelope = anna.withdrawal("tides", sha256(documents(second)[1]))
    receipt = withdraw_expert(grove.coordinator, grove.owner("anna"), envelope)
    assert withdraw_expert(grove.coordinator, grove.owner("anna"), envelope).index == receipt.index
    third = anna.package(tmp_path / "p3", anchor, version=3, supersedes=sha256(documents(second)[1]), seed=3)
    _refused(grove, anna, third, WithdrawnError)


def test_status_tells_an_owner_its_own_things(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    bert = grove.join("bert")
    package = anna.package(tmp_path / "p", anchor)
    grove.push(anna, package)
    open_package = anna.package(tmp_path / "q", anchor, name="rivers", seed=4)
    upload = grove.offer(anna, open_package)
    assemble_model(grove.coordinator, tmp_path / "model")
    mine = owner_status(grove.coordinator, grove.owner("anna"))
    assert [expert.name for expert in mine.experts] == ["tides"]
    assert [record.id for record, _ in mine.uploads] == [upload]
    assert [use.experts for use in mine.models] == [("tides@1",)]
    assert [published.digest for published in mine.anchors] == [anchor]
    assert mine.bytes_used > 0
    theirs = owner_status(grove.coordinator, grove.owner(bert.name))
    assert (theirs.experts, theirs.uploads, theirs.models, theirs.bytes_used) == ((), (), (), 0)


# --- what is refused ----------------------------------------------------------------------------------------------------


def test_a_package_for_another_anchor(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    _refused(grove, anna, anna.package(tmp_path / "p", "ab" * 32), WrongAnchorError, "anchor")


@pytest.mark.parametrize(
    "shape", [TinyShape(hidden=32), TinyShape(inner=40), TinyShape(layers=3), TinyShape(layers=1), TinyShape(dtype="BF16")]
)
def test_tensors_of_another_shape_dtype_or_number(grove: Grove, anna: Member, anchor: str, tmp_path: Path, shape: TinyShape) -> None:
    _refused(grove, anna, anna.package(tmp_path / "p", anchor, shape=shape), TemplateError)


def _respell(folder: Path, file: str, old: str, new: str) -> None:
    tensors = read_safetensors(folder / file)
    write_safetensors(folder / file, {new if name == old else name: tensor for name, tensor in tensors.items()})


def test_a_renamed_tensor(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    write_expert_files(folder)
    _respell(folder, "part-0000.safetensors", "model.layers.0.mlp.up_proj.weight", "model.layers.7.mlp.up_proj.weight")
    expert_manifest(folder, anchor, name="tides", owner="anna", consortium=CONSORTIUM)
    _refused(grove, anna, anna.sign(folder), TemplateError, "model.layers")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_no_number(grove: Grove, anna: Member, anchor: str, tmp_path: Path, value: float) -> None:
    folder = tmp_path / "p"
    write_expert_files(folder)
    tensors = read_safetensors(folder / "part-0000.safetensors")
    dtype, shape, raw = tensors["model.layers.1.mlp.down_proj.weight"]
    tensors["model.layers.1.mlp.down_proj.weight"] = (dtype, shape, raw[:-4] + struct.pack("<f", value))
    write_safetensors(folder / "part-0000.safetensors", tensors)
    expert_manifest(folder, anchor, name="tides", owner="anna", consortium=CONSORTIUM)
    _refused(grove, anna, anna.sign(folder), NonFiniteError, "model.layers.1.mlp.down_proj.weight")


def test_a_manifest_that_lies_about_a_tensor(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    folder = anna.package(tmp_path / "p", anchor)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tensors"][0]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))
    _refused(grove, anna, anna.sign(folder), DigestError, "model.layers")


def test_a_pickle_that_calls_itself_safetensors(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    import hashlib
    import pickle

    folder = anna.package(tmp_path / "p", anchor)
    raw = pickle.dumps({"weights": [1.0] * 1000})
    (folder / "part-0000.safetensors").write_bytes(raw)
    manifest = json.loads((folder / "manifest.json").read_text())
    digest = hashlib.sha256(raw).hexdigest()
    [entry] = [entry for entry in manifest["files"] if entry["name"] == "part-0000.safetensors"]
    entry |= {"size": len(raw), "sha256": digest, "chunks": [digest]}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))
    _refused(grove, anna, anna.sign(folder), SafetensorsError)


def test_files_that_do_not_belong(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    folder = anna.package(tmp_path / "p", anchor)
    (folder / "notes.txt").write_text("x")
    manifest = json.loads((folder / "manifest.json").read_text())
    digest = sha256(b"x")
    manifest["files"].append({"name": "notes.txt", "size": 1, "sha256": digest, "chunks": [digest]})
    manifest["files"].sort(key=lambda entry: entry["name"])
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))
    _refused(grove, anna, anna.sign(folder), LayoutError, "notes.txt")


def test_a_signature_over_something_else(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    folder = anna.package(tmp_path / "p", anchor)
    other = anna.package(tmp_path / "q", anchor, name="rivers")
    (folder / "model.sig").write_bytes((other / "model.sig").read_bytes())
    _refused(grove, anna, folder, DigestError, "signature")


def test_a_broken_signature_and_no_signature(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    folder = anna.package(tmp_path / "p", anchor)
    bundle = json.loads((folder / "model.sig").read_text())
    signature = bundle["dsseEnvelope"]["signatures"][0]["sig"]
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = signature[:20] + ("A" if signature[20] != "A" else "B") + signature[21:]
    (folder / "model.sig").write_text(json.dumps(bundle))
    _refused(grove, anna, folder, SignatureError)
    (folder / "model.sig").write_bytes(b"\x80\x04pickle")
    _refused(grove, anna, folder, FormatError)


def test_a_package_that_another_owner_signed_or_made(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    bert = grove.join("bert")
    _refused(grove, bert, anna.package(tmp_path / "p", anchor), SignerError)
    _refused(grove, anna, anna.package(tmp_path / "q", anchor, owner="bert"), ForbiddenError, "another owner")


def test_a_name_that_belongs_to_another_owner(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    bert = grove.join("bert")
    grove.push(anna, anna.package(tmp_path / "p", anchor))
    _refused(grove, bert, bert.package(tmp_path / "q", anchor, seed=5), ForbiddenError, "tides")


def test_versions_that_do_not_follow(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    _refused(grove, anna, anna.package(tmp_path / "v2", anchor, version=2, supersedes="0" * 64), VersionError, "next version .* is 1")
    grove.push(anna, anna.package(tmp_path / "v1", anchor))
    _refused(grove, anna, anna.package(tmp_path / "other-v1", anchor, seed=9), VersionError, "is 2")
    _refused(grove, anna, anna.package(tmp_path / "wrong", anchor, version=2, supersedes="0" * 64), VersionError, "supersedes")


def test_two_uploads_of_one_version_end_with_one_of_them(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    one, two = anna.package(tmp_path / "a", anchor, seed=1), anna.package(tmp_path / "b", anchor, seed=2)
    upload_one, upload_two = grove.offer(anna, one), grove.offer(anna, two)
    grove.send(anna, one, upload_one)
    grove.send(anna, two, upload_two)
    commit_upload(grove.coordinator, grove.owner("anna"), upload_one)
    with pytest.raises(VersionError):
        commit_upload(grove.coordinator, grove.owner("anna"), upload_two)
    assert grove.debris() == []


def test_documents_beyond_one_message(grove: Grove, anna: Member) -> None:
    with pytest.raises(LimitError):
        offer_upload(grove.coordinator, grove.owner("anna"), bundle=b"x", manifest_raw=b" " * MAX_OFFER_BYTES)


def test_a_truncated_file_and_a_flipped_byte_on_the_way(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    package = anna.package(tmp_path / "p", anchor)
    upload = grove.offer(anna, package)
    owner = grove.owner("anna")
    everything = list(pieces(package, [(0, 0)]))
    key, offset, data = everything[0]
    with ChunkReceiver(grove.coordinator, owner, upload) as receiver, pytest.raises(DigestError):
        receiver.feed(key, offset, bytes([data[0] ^ 1]) + data[1:])
    with ChunkReceiver(grove.coordinator, owner, upload) as receiver:
        assert not receiver.feed(key, 0, data[:-1])
    with ChunkReceiver(grove.coordinator, owner, upload) as receiver, pytest.raises(Exception, match="follow"):
        receiver.feed(key, 5, data[5:])
    with ChunkReceiver(grove.coordinator, owner, upload) as receiver, pytest.raises(Exception, match="at most"):
        receiver.feed(key, 0, bytes(PIECE_BYTES + 1))
    with pytest.raises(IncompleteUploadError):
        commit_upload(grove.coordinator, owner, upload)
    abandon_upload(grove.coordinator, owner, upload)
    assert grove.debris() == []


def test_quotas(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    size = sum(path.stat().st_size for path in anna.package(tmp_path / "p", anchor).iterdir())
    settings = grove.coordinator.config.model_dump()
    text = "\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items() if not isinstance(value, dict))
    config = parse_config(f"{text}\n[quota]\nopen_uploads = 1\nbytes_per_owner = {2**20}\n".encode(), "test")
    save_config(grove.home, config)
    grove.reopen()
    assert size < 2**20
    grove.offer(anna, tmp_path / "p")
    _offer_refused(grove, anna, anna.package(tmp_path / "q", anchor, name="rivers"), "open already")
    grove.push(anna, tmp_path / "p")
    large = anna.package(
        tmp_path / "large", grove.publish("large", TinyShape(hidden=128, inner=512)), name="lakes", shape=TinyShape(128, 512)
    )
    _offer_refused(grove, anna, large, "quota")


def _offer_refused(grove: Grove, member: Member, package: Path, match: str) -> None:
    with pytest.raises(QuotaError, match=match):
        grove.offer(member, package)


def test_a_full_disk_at_the_end_keeps_the_upload_and_leaves_no_blob(
    grove: Grove, anna: Member, anchor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = anna.package(tmp_path / "p", anchor)
    upload = grove.offer(anna, package)
    grove.send(anna, package, upload)
    import coordinator.log.writer as writer_module

    def full(*_: object, **__: object) -> None:
        raise StorageError("No space is left on the disk while writing tile.")

    monkeypatch.setattr(writer_module, "write_atomic", full)
    with pytest.raises(StorageError):
        commit_upload(grove.coordinator, grove.owner("anna"), upload)
    monkeypatch.undo()
    assert grove.debris() == [upload]
    assert "tides" not in grove.coordinator.ledger.state().experts
    commit_upload(grove.coordinator, grove.owner("anna"), upload)
    assert grove.debris() == []


def test_a_full_disk_while_receiving_is_a_storage_error(
    grove: Grove, anna: Member, anchor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = anna.package(tmp_path / "p", anchor)
    upload = grove.offer(anna, package)
    real = os.pwrite

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError):
        grove.send(anna, package, upload)
    monkeypatch.setattr(os, "pwrite", real)
    grove.push(anna, package)


# --- identity -----------------------------------------------------------------------------------------------------------


def test_an_invitation_admits_once_and_repeating_it_with_the_same_keys_gives_the_same_certificates(grove: Grove) -> None:
    uri = owner_uri(CONSORTIUM, "anna")
    token = grove.invitation("anna").token
    csrs = [make_csr(generate_signing_key(), uri) for _ in range(4)]
    first = enrol(grove.coordinator, token=token, signing_csr=csrs[0], transport_csr=csrs[1])
    again = enrol(grove.coordinator, token=token, signing_csr=csrs[0], transport_csr=csrs[1])
    assert (first.signing_der, first.receipt.index) == (again.signing_der, again.receipt.index)
    for pair in ((2, 3), (1, 0), (0, 3)):
        with pytest.raises(InvitationRefusedError):
            enrol(grove.coordinator, token=token, signing_csr=csrs[pair[0]], transport_csr=csrs[pair[1]])
    with pytest.raises(InvitationRefusedError):
        enrol(grove.coordinator, token="x" * 43, signing_csr=csrs[2], transport_csr=csrs[3])


def test_a_bad_certificate_request_does_not_cost_the_invitation(grove: Grove) -> None:
    uri = owner_uri(CONSORTIUM, "anna")
    token, csr = grove.invitation("anna").token, make_csr(generate_signing_key(), uri)
    for signing, transport in ((b"nonsense", csr), (csr, csr), (csr, csr[:-1])):
        with pytest.raises(FormatError):
            enrol(grove.coordinator, token=token, signing_csr=signing, transport_csr=transport)
    enrol(grove.coordinator, token=token, signing_csr=csr, transport_csr=make_csr(generate_signing_key(), uri))


def test_a_failed_admission_gives_the_token_back(grove: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    import coordinator.log.writer as writer_module

    uri = owner_uri(CONSORTIUM, "anna")
    token, csrs = grove.invitation("anna").token, [make_csr(generate_signing_key(), uri) for _ in range(2)]

    def full(*_: object, **__: object) -> None:
        raise StorageError

    monkeypatch.setattr(writer_module, "write_atomic", full)
    with pytest.raises(StorageError):
        enrol(grove.coordinator, token=token, signing_csr=csrs[0], transport_csr=csrs[1])
    monkeypatch.undo()
    enrol(grove.coordinator, token=token, signing_csr=csrs[0], transport_csr=csrs[1])


def test_a_name_is_given_once(grove: Grove, anna: Member) -> None:
    from datetime import timedelta

    with pytest.raises(AlreadyExistsError):
        invite(grove.coordinator, "anna", valid_for=timedelta(days=1))
    with pytest.raises(FormatError):
        invite(grove.coordinator, "Anna Smith", valid_for=timedelta(days=1))
    with pytest.raises(UsageError):
        invite(grove.coordinator, "bert", valid_for=timedelta(days=4000))


def test_who_is_calling(grove: Grove, anna: Member, tmp_path: Path) -> None:
    assert authenticate(grove.coordinator, anna.identity.certificate_pem).name == "anna"
    stranger = Grove(tmp_path / "elsewhere")
    try:
        with pytest.raises(UnauthenticatedError):
            authenticate(grove.coordinator, stranger.join("anna").identity.certificate_pem)
    finally:
        stranger.close()
    for pem in (b"", b"nonsense", anna.signing_certificate.public_bytes(Encoding.PEM), grove.home.root.read_bytes()):
        with pytest.raises(UnauthenticatedError):
            authenticate(grove.coordinator, pem)


def test_a_revoked_owner_can_do_nothing_and_its_experts_are_out(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    grove.push(anna, anna.package(tmp_path / "p", anchor))
    grove.offer(anna, anna.package(tmp_path / "q", anchor, name="rivers"))
    revoke_owner(grove.coordinator, "anna", reason="key lost")
    with pytest.raises(RevokedError):
        authenticate(grove.coordinator, anna.identity.certificate_pem)
    assert grove.coordinator.ledger.state().experts_in_force() == ()
    assert grove.debris() == []
    with pytest.raises(AlreadyExistsError):
        revoke_owner(grove.coordinator, "anna", reason="again")
    with pytest.raises(NotFoundError):
        revoke_owner(grove.coordinator, "zoe", reason="")


# --- withdrawal, downloads, anchors, models -------------------------------------------------------------------------------


def test_only_the_owner_withdraws_and_only_the_newest_manifest(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    bert = grove.join("bert")
    package = anna.package(tmp_path / "p", anchor)
    grove.push(anna, package)
    digest, state = sha256(documents(package)[1]), grove.coordinator.ledger.state()
    anna_state, bert_state = state.owners["anna"], state.owners["bert"]
    attempts = [
        (bert_state, bert.withdrawal("tides", digest), ForbiddenError),
        (bert_state, anna.withdrawal("tides", digest), SignerError),
        (bert_state, bert.withdrawal("tides", digest, owner=anna.uri), SignerError),
        (anna_state, anna.withdrawal("tides", "0" * 64), VersionError),
        (anna_state, anna.withdrawal("lakes", digest), NotFoundError),
        (anna_state, documents(package)[0], ElmgroveError),
        (anna_state, b"{}", FormatError),
    ]
    for owner, envelope, kind in attempts:
        with pytest.raises(kind):
            withdraw_expert(grove.coordinator, owner, envelope)
    assert grove.coordinator.ledger.state().experts["tides"][0].status == "in-force"
    withdraw_expert(grove.coordinator, anna_state, anna.withdrawal("tides", digest))
    with pytest.raises(WithdrawnError):
        withdraw_expert(grove.coordinator, anna_state, anna.withdrawal("tides", digest, reason="once more"))


def test_an_owner_fetches_anchors_documents_and_its_own_packages_only(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    bert = grove.join("bert")
    grove.push(anna, anna.package(tmp_path / "p", anchor))
    state = grove.coordinator.ledger.state()
    private = next(entry for entry in state.experts["tides"][0].manifest.files if entry.name == "part-0000.safetensors")
    public = next(entry for entry in state.anchors[anchor].manifest.files if entry.name == "model.safetensors")
    for member, digest, size in ((anna, private.sha256, private.size), (bert, public.sha256, public.size)):
        download = open_download(grove.coordinator, state.owners[member.name], digest, offset=0, length=0)
        assert download.size == size
        assert sha256(b"".join(download.pieces)) == digest
    part = open_download(grove.coordinator, state.owners["bert"], public.sha256, offset=10, length=20)
    assert b"".join(part.pieces) == grove.coordinator.blobs.path(public.sha256).read_bytes()[10:30]
    document = open_download(grove.coordinator, state.owners["bert"], anchor, offset=0, length=0)
    assert sha256(b"".join(document.pieces)) == anchor
    for digest in (private.sha256, "0" * 64, "../../state.db", ""):
        with pytest.raises(NotFoundError):
            open_download(grove.coordinator, state.owners["bert"], digest, offset=0, length=0)
    for offset, length in ((public.size + 1, 0), (public.size, 1), (0, public.size + 1), (2**62, 2**62)):
        with pytest.raises(UsageError):
            open_download(grove.coordinator, state.owners["bert"], public.sha256, offset=offset, length=length)


def test_assembly_takes_what_is_in_force_and_says_so_in_the_log(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    bert = grove.join("bert")
    grove.push(bert, bert.package(tmp_path / "b", anchor, name="rivers", seed=2))
    grove.push(anna, anna.package(tmp_path / "a", anchor, name="tides"))
    model = assemble_model(grove.coordinator, tmp_path / "all")
    assert [(slot.slot, slot.name) for slot in model.experts] == [(1, "rivers"), (2, "tides")]
    assert model.top_k == 3
    logged = grove.coordinator.ledger.state().models[-1]
    assert (logged.digest, logged.index) == (model.digest, model.receipt.index)
    assert sha256((tmp_path / "all" / "manifest.json").read_bytes()) == model.digest
    only = assemble_model(grove.coordinator, tmp_path / "only", include=["rivers"])
    without = assemble_model(grove.coordinator, tmp_path / "without", exclude=["tides"])
    assert only.digest == without.digest
    package = (tmp_path / "b" / "manifest.json").read_bytes()
    withdraw_expert(grove.coordinator, grove.owner("bert"), bert.withdrawal("rivers", sha256(package)))
    assert [slot.name for slot in assemble_model(grove.coordinator, tmp_path / "later").experts] == ["tides"]
    for options, kind in (
        ({"include": ["rivers"]}, WithdrawnError),
        ({"include": ["lakes"]}, NotFoundError),
        ({"exclude": ["lakes"]}, NotFoundError),
        ({"include": ["tides"], "exclude": ["tides"]}, UsageError),
        ({"top_k": 5}, UsageError),
        ({"anchor": "other"}, NotFoundError),
    ):
        entries = grove.coordinator.ledger.state().size
        with pytest.raises(kind):
            assemble_model(grove.coordinator, tmp_path / "never", **options)  # type: ignore[arg-type]
        assert not (tmp_path / "never").exists()
        assert grove.coordinator.ledger.state().size == entries
    with pytest.raises(AlreadyExistsError):
        assemble_model(grove.coordinator, tmp_path / "all")


def test_anchors_that_cannot_be_published(grove: Grove, anchor: str, tmp_path: Path) -> None:
    from common.errors import ArchitectureError

    def attempt(folder: Path, kind: type[ElmgroveError], name: str = "next") -> None:
        size = grove.coordinator.ledger.state().size
        with pytest.raises(kind):
            publish_anchor(grove.coordinator, folder, name=name, licence="", provenance="", sample=(), sample_bytes=0, measure=None)
        assert grove.coordinator.ledger.state().size == size
        assert grove.debris() == []
        assert [path.name for path in grove.home.path.iterdir() if path.name.startswith(".")] == []

    good = tmp_path / "good"
    write_anchor_files(good, seed=7)
    attempt(good, AlreadyExistsError, name="base")
    attempt(tmp_path / "missing", NotFoundError)
    llama = tmp_path / "llama"
    write_anchor_files(llama)
    config = json.loads((llama / "config.json").read_text()) | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (llama / "config.json").write_text(json.dumps(config))
    attempt(llama, ArchitectureError)
    pickled = tmp_path / "pickled"
    write_anchor_files(pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    attempt(pickled, ArchitectureError)
    (good / "tokenizer.json").unlink()
    attempt(good, LayoutError)


def test_two_consortia_do_not_share_packages(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    write_expert_files(folder)
    expert_manifest(folder, anchor, name="tides", owner="anna", consortium="orchard")
    _refused(grove, anna, anna.sign(folder), ForbiddenError)
