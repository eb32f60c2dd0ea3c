"""Valid bytes of every kind that strangers send, made once by a tiny consortium and the programs' own writers."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from common.formats.invitation import Invitation, encode_invitation
from common.formats.proxies import encode_proxies
from common.translog.merkle import inclusion_proof, leaf_hash, nodes_of
from common.translog.proof import encode_receipt
from common.translog.tiles import encode_entries
from common.trust.certificates import make_csr
from common.trust.keys import generate_signing_key, private_key_pem
from tests.support.tiny_consortium import TinyConsortium

__all__ = ["Samples", "samples"]


@dataclass(frozen=True)
class Samples:
    """See the module; ``world`` is the consortium they come from, whose folder is gone."""

    world: TinyConsortium
    manifests: dict[str, list[bytes]]
    bundles: list[bytes]
    statements: list[bytes]
    """Envelopes."""
    entries: list[bytes]
    headers: list[bytes]
    """Whole safetensors files."""
    configs: list[bytes]
    certificates: list[bytes]
    root_files: list[bytes]
    requests: list[bytes]
    keys: list[bytes]
    notes: list[bytes]
    checkpoints: list[bytes]
    receipts: list[bytes]
    entry_bundles: list[bytes]
    invitations: list[bytes]
    proxies: list[bytes]


@cache
def samples() -> Samples:
    """All samples."""
    with tempfile.TemporaryDirectory() as name:
        return _collect(TinyConsortium(Path(name)))


def _collect(grove: TinyConsortium) -> Samples:
    grove.admit("anna")
    grove.admit("bert")
    grove.publish_anchor()
    law, tides = grove.contribute("anna", "law"), grove.contribute("bert", "tides", parts=2)
    model = grove.assemble(law, tides)
    tuned = grove.tune(model, "law")
    grove.withdraw("anna", law)
    grove.revoke("bert")
    note = (grove.log / "checkpoint").read_bytes()
    node = nodes_of([leaf_hash(entry) for entry in grove.entries])
    receipts = [encode_receipt(at, inclusion_proof(at, len(grove.entries), node), note) for at in (0, 3, len(grove.entries) - 1)]
    folders = {"anchor": [grove.anchor], "expert": [law, tides], "model": [model, tuned]}
    every = [folder for each in folders.values() for folder in each]
    logged = [json.loads(entry) for entry in grove.entries]
    key = generate_signing_key()
    digests = [f"{at:064x}" for at in range(5)]
    invitation = Invitation(
        consortium="grove", owner="anna", host="127.0.0.1", enrol_port=4001, port=4000, root_sha256=grove.root.fingerprint,
        token="a" * 43, expires="2026-05-01T12:00:00Z",
    )  # fmt: skip
    return Samples(
        world=grove,
        manifests={kind: [(folder / "manifest.json").read_bytes() for folder in each] for kind, each in folders.items()},
        bundles=[(folder / "model.sig").read_bytes() for folder in every],
        statements=[grove.documents[entry["document"]] for entry in logged if entry["kind"] not in {"anchor-published", "expert-accepted"}],
        entries=grove.entries,
        headers=[path.read_bytes() for path in (law / "router.safetensors", model / "model-router.safetensors")],
        configs=[(folder / "config.json").read_bytes() for folder in (grove.anchor, model)],
        certificates=[
            grove.root.der,
            *(party.certificate.public_bytes(Encoding.DER) for party in (grove.operator, *grove.owners.values())),
        ],
        root_files=[grove.root_pem.read_bytes()],
        requests=[make_csr(key, "elmgrove://grove/owners/anna")],
        keys=[private_key_pem(key, None), private_key_pem(grove.log_key, b"x")],
        notes=[note],
        checkpoints=[note[: note.index(b"\n\n") + 1]],
        receipts=receipts,
        entry_bundles=[encode_entries(grove.entries), encode_entries(grove.entries[:1])],
        invitations=[encode_invitation(invitation).encode()],
        proxies=[encode_proxies("law", "1" * 64, digests)],
    )
