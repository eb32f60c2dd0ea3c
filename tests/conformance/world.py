"""A consortium to attack, and the steps of which attacks are made; a case names them by their function's names.

Everything is signed with the consortium's real keys wherever the attacker would hold them: an owner its own, the coordinator the
operator's, the root's and the log's.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from common.formats.entries import LogEntry, encode_entry, parse_entry
from common.formats.fields import format_time, owner_uri, parse_time
from common.formats.limits import CHUNK_BYTES
from common.formats.manifest import RESERVED_NAMES, ExpertManifest, ModelManifest
from common.formats.statements import ExpertWithdrawn
from common.formats.strictjson import parse_document
from common.translog.checkpoint import Checkpoint, sign_checkpoint
from common.trust.certificates import TrustRoot, issue_leaf, issue_root
from common.trust.keys import generate_log_key, generate_signing_key
from common.trust.oms import sign_resources
from common.weights.contents import build_tables, encode_manifest
from common.weights.index import list_folder
from common.weights.sources import in_folder
from tests.support.tiny_consortium import Party, TinyConsortium
from tests.support.tiny_manifests import expert_manifest, sha256
from tests.support.tiny_weights import read_safetensors, write_safetensors

Step = Callable[..., None]
STEPS: dict[str, Step] = {}


def step(function: Step) -> Step:
    STEPS[function.__name__] = function
    return function


def honest_world(folder: Path) -> TinyConsortium:
    """Three owners with one expert each, an anchor, a model of two of them, a kept checkpoint and kept receipts."""
    grove = TinyConsortium(folder)
    for owner in ("anna", "bert", "cara"):
        grove.admit(owner)
    grove.publish_anchor()
    law, medicine = grove.contribute("anna", "law", parts=2), grove.contribute("bert", "medicine")
    grove.contribute("cara", "chess")
    grove.assemble(law, medicine, out="model", top_k=2)
    (folder / "kept").mkdir()
    (folder / "kept" / "checkpoint").write_bytes(grove.checkpoint())
    grove.receipt(0, folder / "receipts" / "founding")
    grove.receipt(5, folder / "receipts" / "law")
    return grove


def fork(grove: TinyConsortium, folder: Path) -> TinyConsortium:
    """A copy of everything, to be spoiled."""
    shutil.copytree(grove.folder, folder)
    other = copy.copy(grove)
    other.folder, other.log, other.anchor, other.root_pem = folder, folder / "log", folder / "anchor", folder / "root.pem"
    other.entries, other.documents, other.owners = list(grove.entries), dict(grove.documents), dict(grove.owners)
    return other


def attack(grove: TinyConsortium, steps: tuple[tuple[Any, ...], ...]) -> None:
    for name, *arguments in steps:
        STEPS[name](grove, *arguments)


def party(grove: TinyConsortium, name: str) -> Party:
    return grove.operator if name == "operator" else grove.owners[name]


# --- files -------------------------------------------------------------------------------------------------------------


@step
def write(grove: TinyConsortium, path: str, text: str) -> None:
    (grove.folder / path).write_text(text)


@step
def write_pickle(grove: TinyConsortium, path: str) -> None:
    (grove.folder / path).write_bytes(b"\x80\x04K\x01.")


@step
def remove(grove: TinyConsortium, path: str) -> None:
    target = grove.folder / path
    shutil.rmtree(target) if target.is_dir() else target.unlink()


@step
def flip(grove: TinyConsortium, path: str, at: int) -> None:
    target = grove.folder / path
    raw = bytearray(target.read_bytes())
    raw[at] ^= 1
    target.write_bytes(raw)


@step
def link(grove: TinyConsortium, path: str) -> None:
    """Move a file away and put a link to it in its place."""
    target = grove.folder / path
    target.rename(grove.folder / "elsewhere")
    target.symlink_to(grove.folder / "elsewhere")


@step
def pipe(grove: TinyConsortium, path: str) -> None:
    os.mkfifo(grove.folder / path)


@step
def folder_in(grove: TinyConsortium, path: str) -> None:
    (grove.folder / path).mkdir()


@step
def copy_file(grove: TinyConsortium, source: str, target: str) -> None:
    shutil.copyfile(grove.folder / source, grove.folder / target)


@step
def foreign_root(grove: TinyConsortium, path: str) -> None:
    """The root certificate of somebody else who calls the consortium the same."""
    root = issue_root(grove.name, generate_signing_key(), grove.now)
    (grove.folder / path).write_bytes(root.public_bytes(Encoding.PEM))


# --- tensors -----------------------------------------------------------------------------------------------------------


@step
def rename_tensor(grove: TinyConsortium, path: str, old: str, new: str) -> None:
    tensors = read_safetensors(grove.folder / path)
    write_safetensors(grove.folder / path, {new if name == old else name: tensor for name, tensor in tensors.items()})


@step
def drop_tensor(grove: TinyConsortium, path: str, name: str) -> None:
    tensors = read_safetensors(grove.folder / path)
    del tensors[name]
    write_safetensors(grove.folder / path, tensors)


@step
def add_tensor(grove: TinyConsortium, path: str, name: str) -> None:
    tensors = read_safetensors(grove.folder / path)
    write_safetensors(grove.folder / path, {**tensors, name: ("F32", (2,), bytes(8))})


@step
def swap_tensors(grove: TinyConsortium, first: str, name: str, second: str, other: str) -> None:
    a, b = read_safetensors(grove.folder / first), read_safetensors(grove.folder / second)
    a[name], b[other] = b[other], a[name]
    write_safetensors(grove.folder / first, a)
    write_safetensors(grove.folder / second, b)


@step
def swap_rows(grove: TinyConsortium, path: str, name: str) -> None:
    """Exchange the last two rows of a router."""
    tensors = read_safetensors(grove.folder / path)
    dtype, shape, raw = tensors[name]
    width = len(raw) // shape[0]
    tensors[name] = (dtype, shape, raw[: -2 * width] + raw[-width:] + raw[-2 * width : -width])
    write_safetensors(grove.folder / path, tensors)


@step
def last_value(grove: TinyConsortium, path: str, value: str) -> None:
    target = grove.folder / path
    target.write_bytes(target.read_bytes()[:-4] + struct.pack("<f", float(value)))


@step
def header(grove: TinyConsortium, path: str, old: str, new: str) -> None:
    """Replace text in the JSON of a safetensors file's header, whose length follows."""
    _write_header(grove.folder / path, lambda text: _replaced(text, old, new))


@step
def header_twice(grove: TinyConsortium, path: str, name: str) -> None:
    """Say the same thing about a tensor a second time."""

    def repeat(text: str) -> str:
        entry = json.dumps(json.loads(text)[name])
        return text.rstrip()[:-1] + f', "{name}": {entry}}}'

    _write_header(grove.folder / path, repeat)


@step
def header_overlap(grove: TinyConsortium, path: str) -> None:
    """Let the second tensor begin where the first one does."""

    def overlap(text: str) -> str:
        table = json.loads(text)
        first, second, *_ = (name for name in table if name != "__metadata__")
        table[second] = {**table[second], "data_offsets": table[first]["data_offsets"], "shape": table[first]["shape"]}
        return json.dumps(table)

    _write_header(grove.folder / path, overlap)


@step
def header_nested(grove: TinyConsortium, path: str, depth: int) -> None:
    _write_header(grove.folder / path, lambda _text: '{"a": ' + "[" * depth + "]" * depth + "}")


@step
def header_padded(grove: TinyConsortium, path: str, size: int) -> None:
    _write_header(grove.folder / path, lambda text: text + " " * size)


@step
def header_length(grove: TinyConsortium, path: str, length: int) -> None:
    """Claim a header of this length."""
    target = grove.folder / path
    target.write_bytes(struct.pack("<Q", length) + target.read_bytes()[8:])


@step
def append_bytes(grove: TinyConsortium, path: str, count: int) -> None:
    with (grove.folder / path).open("ab") as stream:
        stream.write(bytes(count))


def _write_header(path: Path, change: Callable[[str], str]) -> None:
    raw = path.read_bytes()
    end = 8 + struct.unpack("<Q", raw[:8])[0]
    changed = change(raw[8:end].decode()).encode()
    path.write_bytes(struct.pack("<Q", len(changed)) + changed + raw[end:])


def _replaced(text: str, old: str, new: str) -> str:
    assert old in text, f"{old!r} is not there to be replaced"
    return text.replace(old, new, 1)


# --- manifests and signatures ------------------------------------------------------------------------------------------


@step
def sign(grove: TinyConsortium, folder: str, who: str) -> None:
    """Sign a folder's manifest and files as they lie there, with the right certificate of ``who``."""
    _sign(grove.folder / folder, party(grove, who), party(grove, who).certificate)


def _sign(folder: Path, by: Party, certificate: x509.Certificate) -> None:
    names = [path.name for path in folder.iterdir() if path.is_file() and path.name != "model.sig"]
    resources = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "model.sig").write_bytes(sign_resources(resources, folder.name, by.key, certificate))


@step
def sign_with(grove: TinyConsortium, folder: str, who: str, what: str) -> None:
    """Sign with a certificate of ``who`` that is not good for it."""
    by = party(grove, who)
    other_key = generate_signing_key()
    name = issue_root("stranger", other_key, grove.now)
    stranger = TrustRoot.from_der(name.public_bytes(Encoding.DER))
    make: dict[str, Callable[[], x509.Certificate]] = {
        "transport": lambda: issue_leaf(grove.root, grove.root_key, by.key.public_key(), "transport", by.uri, grove.now),
        "server": lambda: issue_leaf(grove.root, grove.root_key, by.key.public_key(), "server", by.uri, grove.now),
        "one-day": lambda: issue_leaf(grove.root, grove.root_key, by.key.public_key(), "signing", by.uri, grove.now, days=1),
        "tomorrow": lambda: issue_leaf(grove.root, grove.root_key, by.key.public_key(), "signing", by.uri, grove.now + timedelta(days=1)),
        "unlisted": lambda: issue_leaf(grove.root, grove.root_key, by.key.public_key(), "signing", by.uri, grove.now),
        "foreign": lambda: issue_leaf(stranger, other_key, by.key.public_key(), "signing", by.uri, grove.now),
        "forged": lambda: issue_leaf(grove.root, other_key, by.key.public_key(), "signing", by.uri, grove.now),
        "authority": lambda: issue_root(grove.name, by.key, grove.now),
    }
    _sign(grove.folder / folder, by, make[what]())


@step
def remake_manifest(grove: TinyConsortium, folder: str, who: str) -> None:
    """The owner lists whatever lies in the folder now, tensors included, and signs it."""
    place = grove.folder / folder
    old = parse_document(ExpertManifest, (place / "manifest.json").read_bytes())
    expert_manifest_from(place, old)
    sign(grove, folder, who)


def expert_manifest_from(place: Path, old: ExpertManifest) -> None:
    names = [name for name in list_folder(place) if name not in RESERVED_NAMES]
    fields = {key: value for key, value in old.model_dump(mode="json", by_alias=True).items() if key not in {"files", "tensors"}}
    raw, _ = encode_manifest(ExpertManifest, build_tables(in_folder(place), names), fields)
    (place / "manifest.json").write_bytes(raw)


@step
def relist_file(grove: TinyConsortium, folder: str, name: str, who: str) -> None:
    """The owner corrects size and digests of one file in the manifest, whatever it holds, and signs it."""
    place = grove.folder / folder
    document = json.loads((place / "manifest.json").read_text())
    raw = (place / name).read_bytes()
    for row in document["files"]:
        if row["name"] == name:
            chunks = [sha256(raw[at : at + CHUNK_BYTES]) for at in range(0, len(raw), CHUNK_BYTES)]
            row.update(size=len(raw), sha256=sha256(raw), chunks=chunks)
    (place / "manifest.json").write_text(json.dumps(document, indent=2))
    sign(grove, folder, who)


@step
def edit_manifest(grove: TinyConsortium, folder: str, old: str, new: str, who: str) -> None:
    """Replace text in a manifest and sign the result."""
    place = grove.folder / folder / "manifest.json"
    place.write_text(_replaced(place.read_text(), old, new))
    sign(grove, folder, who)


@step
def name_anchor(grove: TinyConsortium, folder: str, digest: str, who: str) -> None:
    """Say that a package is for the anchor with this digest, and sign that."""
    place = grove.folder / folder
    old = parse_document(ExpertManifest, (place / "manifest.json").read_bytes())
    expert_manifest_from(place, old.model_copy(update={"anchor": digest}))
    sign(grove, folder, who)


@step
def recode_manifest(grove: TinyConsortium, folder: str, encoding: str, who: str) -> None:
    place = grove.folder / folder / "manifest.json"
    place.write_bytes(place.read_text().encode(encoding))
    sign(grove, folder, who)


@step
def nest_manifest(grove: TinyConsortium, folder: str, depth: int, who: str) -> None:
    edit_manifest(grove, folder, '"training": {', '"training": {"deep": ' + "[" * depth + "]" * depth + ", ", who)


@step
def forge_model(grove: TinyConsortium, folder: str) -> None:
    """The operator lists whatever lies in a model's folder now, signs it, and logs that it assembled it."""
    place = grove.folder / folder
    old = parse_document(ModelManifest, (place / "manifest.json").read_bytes()).model_dump(mode="json", by_alias=True)
    names = [name for name in list_folder(place) if name not in RESERVED_NAMES]
    fields = {key: value for key, value in old.items() if key not in {"files", "tensors"}}
    raw, _ = encode_manifest(ModelManifest, build_tables(in_folder(place), names), fields)
    (place / "manifest.json").write_bytes(raw)
    sign(grove, folder, "operator")
    grove.log_model(raw)


# --- what happens in the consortium -------------------------------------------------------------------------------------


@step
def admit(grove: TinyConsortium, owner: str, days: int) -> None:
    """Admit an owner with certificates for so many days."""
    grove.admit(owner, days=days)


@step
def package(grove: TinyConsortium, owner: str, expert: str, version: int = 1, previous: str = "", not_after: str = "") -> None:
    """Make and sign a package without logging it; ``previous`` is the folder of the version it supersedes."""
    supersedes = sha256((grove.folder / previous / "manifest.json").read_bytes()) if previous else None
    folder = grove.package(owner, expert, version=version, supersedes=supersedes)
    if not_after:
        end = parse_time(not_after)
        expert_manifest(folder, grove.anchor_digest, name=expert, owner=owner, consortium=grove.name, created=grove.now, not_after=end)
        sign(grove, folder.relative_to(grove.folder).as_posix(), owner)


@step
def accept(grove: TinyConsortium, folder: str) -> None:
    grove.accept(grove.folder / folder)


@step
def claim(grove: TinyConsortium, source: str, target: str, who: str, expert: str) -> None:
    """``who`` takes a copy of another's package, puts its own and the expert's name on it, and signs."""
    shutil.copytree(grove.folder / source, grove.folder / target)
    place = grove.folder / target
    old = parse_document(ExpertManifest, (place / "manifest.json").read_bytes())
    expert_manifest_from(place, old.model_copy(update={"owner": owner_uri(grove.name, who), "name": expert}))
    sign(grove, target, who)


@step
def revoke(grove: TinyConsortium, owner: str) -> None:
    grove.revoke(owner)


@step
def withdraw(grove: TinyConsortium, owner: str, folder: str) -> None:
    grove.withdraw(owner, grove.folder / folder)


@step
def withdraw_anothers(grove: TinyConsortium, thief: str, owner: str, folder: str) -> None:
    """``thief`` signs a withdrawal that names ``owner``."""
    manifest = (grove.folder / folder / "manifest.json").read_bytes()
    expert = parse_document(ExpertManifest, manifest)
    statement = ExpertWithdrawn(
        schema="elmgrove.expert-withdrawn/v1",
        consortium=grove.name,
        created=format_time(grove.now),
        owner=grove.owners[owner].uri,
        expert=expert.name,
        manifest=sha256(manifest),
        reason="a rival",
    )
    grove.append("expert-withdrawn", f"expert/{expert.name}@{expert.version}", grove.state(statement, grove.owners[thief]))


@step
def assemble(grove: TinyConsortium, out: str, *folders: str) -> None:
    grove.assemble(*(grove.folder / folder for folder in folders), out=out)


@step
def assemble_unlogged(grove: TinyConsortium, out: str, *folders: str) -> None:
    grove.assemble(*(grove.folder / folder for folder in folders), out=out, log=False)


@step
def tune(grove: TinyConsortium, model: str, out: str, *experts: str) -> None:
    grove.tune(grove.folder / model, *experts, out=out)


@step
def second_anchor(grove: TinyConsortium) -> None:
    """Publish another anchor, which packages made after this are for; the first one's folder is kept."""
    grove.anchor = grove.folder / "anchor-2"
    grove.publish_anchor(name="second", seed=9)


@step
def anchor_digest(grove: TinyConsortium, digest: str) -> None:
    """Packages made after this are for an anchor with this digest."""
    grove.anchor_digest = digest


@step
def assemble_from(grove: TinyConsortium, anchor: str, out: str, folder: str) -> None:
    """Assemble from ``anchor`` an expert whose manifest is of another one, by putting the right digest into an unlogged copy."""
    grove.anchor = grove.folder / anchor
    digest = sha256((grove.anchor / "manifest.json").read_bytes())
    logged = grove.folder / folder
    lie = grove.folder / "lie"
    shutil.copytree(logged, lie)
    old = parse_document(ExpertManifest, (lie / "manifest.json").read_bytes())
    expert_manifest_from(lie, old.model_copy(update={"anchor": digest}))
    model = grove.assemble(lie, out=out, log=False)
    truth, told = sha256((logged / "manifest.json").read_bytes()), sha256((lie / "manifest.json").read_bytes())
    raw = (model / "manifest.json").read_bytes().replace(told.encode(), truth.encode())
    (model / "manifest.json").write_bytes(raw)
    sign(grove, out, "operator")
    grove.log_model(raw)


@step
def wait(grove: TinyConsortium, days: int) -> None:
    grove.tick(days * 86_400)


@step
def set_clock(grove: TinyConsortium, time: str) -> None:
    grove.now = parse_time(time)


# --- the log -----------------------------------------------------------------------------------------------------------


@step
def log_again(grove: TinyConsortium, index: int) -> None:
    """Log the document of an entry a second time."""
    entry = parse_entry(grove.entries[index])
    grove.append(entry.kind, entry.subject, grove.documents[entry.document])


@step
def swap_entries(grove: TinyConsortium, first: int, second: int) -> None:
    """The log's key signs the same entries in another order, each with the time of its new place."""
    a, b = parse_entry(grove.entries[first]), parse_entry(grove.entries[second])
    grove.entries[first], grove.entries[second] = _timed(b, a.time), _timed(a, b.time)
    grove.write_log()


def _timed(entry: LogEntry, time: str) -> bytes:
    return encode_entry(entry.model_copy(update={"time": time}))


@step
def roll_back(grove: TinyConsortium, size: int) -> None:
    """The log's key signs an earlier size again."""
    del grove.entries[size:]
    grove.write_log()


@step
def rewrite_last(grove: TinyConsortium) -> None:
    """The log's key signs another last entry: the same fact, one second later."""
    last = parse_entry(grove.entries[-1])
    grove.entries[-1] = _timed(last, format_time(parse_time(last.time) + timedelta(seconds=1)))
    grove.write_log()


@step
def sign_wrong_root(grove: TinyConsortium) -> None:
    note = sign_checkpoint(Checkpoint(grove.origin, len(grove.entries), hashlib.sha256(b"a wrong tree").digest()), grove.log_key)
    (grove.log / "checkpoint").write_bytes(note)


@step
def sign_log_with_another_key(grove: TinyConsortium) -> None:
    grove.log_key = generate_log_key()
    grove.write_log()


@step
def withhold_document(grove: TinyConsortium, index: int) -> None:
    (grove.log / "documents" / parse_entry(grove.entries[index]).document).unlink()


@step
def exchange_documents(grove: TinyConsortium, first: int, second: int) -> None:
    """Serve one entry's document under the name of another's."""
    names = [parse_entry(grove.entries[index]).document for index in (first, second)]
    (grove.log / "documents" / names[0]).write_bytes(grove.documents[names[1]])


@step
def keep_receipt(grove: TinyConsortium, index: int, folder: str) -> None:
    grove.receipt(index, grove.folder / folder)
