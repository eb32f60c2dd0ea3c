"""Following the log: an honest log is followed, a fork and a rollback are refused and leave evidence that others can check."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import LogError, LogInconsistentError, ProtocolError
from common.translog.checkpoint import Checkpoint, sign_checkpoint, verify_checkpoint
from common.translog.merkle import consistency_proof, leaf_hash, root_hash
from common.translog.note import encode_vkey
from common.trust.keys import generate_log_key
from owner_client.config import CoordinatorAddress, Home, OwnerConfig, Pinned
from owner_client.daemon.sync import ConsistencyAnswer, follow_log, last_checkpoint

ORIGIN = "elmgrove/demo/log"


@dataclass
class EvilLog:
    """A log of leaves whose every answer can be bent."""

    key: Ed25519PrivateKey
    leaves: list[bytes]
    grow_between: int = 0
    proof: list[bytes] | None = None
    calls: int = field(default=0)

    def note(self) -> bytes:
        hashes = [leaf_hash(leaf) for leaf in self.leaves]
        return sign_checkpoint(Checkpoint(ORIGIN, len(hashes), root_hash(hashes)), self.key)

    def consistency(self, old_size: int) -> ConsistencyAnswer:
        self.calls += 1
        if self.calls <= self.grow_between:
            self.leaves.append(b"grown %d" % self.calls)
        hashes = [leaf_hash(leaf) for leaf in self.leaves]
        if self.proof is not None:
            return ConsistencyAnswer(self.note(), self.proof)
        if old_size >= len(hashes) or old_size == 0:
            return ConsistencyAnswer(self.note(), ())
        return ConsistencyAnswer(self.note(), prove(old_size, hashes))


def prove(old: int, hashes: list[bytes]) -> list[bytes]:
    def node(level: int, index: int) -> bytes:
        return root_hash(hashes[index << level : (index + 1) << level])

    return list(consistency_proof(old, len(hashes), node))


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return generate_log_key()


@pytest.fixture
def config(key: Ed25519PrivateKey) -> OwnerConfig:
    return OwnerConfig(
        consortium="demo",
        owner="alice",
        coordinator=CoordinatorAddress(host="localhost", port=1),
        pinned=Pinned(root_sha256="00" * 32, log_key=encode_vkey(ORIGIN, key.public_key())),
    )


def test_an_honest_log_is_followed(tmp_path: Path, key: Ed25519PrivateKey, config: OwnerConfig) -> None:
    home, log = Home(tmp_path), EvilLog(key, [b"a"])
    for leaves in range(1, 12):
        log.leaves = [b"leaf %d" % index for index in range(leaves)]
        assert follow_log(home, config, log).checkpoint.size == leaves
    seen = last_checkpoint(home, config.pinned.log_key)
    assert seen is not None
    assert seen.checkpoint.size == 11


def test_a_log_that_grows_meanwhile_is_followed(tmp_path: Path, key: Ed25519PrivateKey, config: OwnerConfig) -> None:
    home = Home(tmp_path)
    first = EvilLog(key, [b"a", b"b", b"c"])
    shown = EvilLog(key, [b"a", b"b"]).note()
    follow_log(home, config, first)
    growing = EvilLog(key, [b"a", b"b", b"c"], grow_between=3)
    assert follow_log(home, config, growing, [shown]).checkpoint.size == 6


def test_one_that_never_stops_growing_is_given_up(tmp_path: Path, key: Ed25519PrivateKey, config: OwnerConfig) -> None:
    home = Home(tmp_path)
    follow_log(home, config, EvilLog(key, [b"a"]))
    with pytest.raises(ProtocolError):
        follow_log(home, config, EvilLog(key, [b"a"], grow_between=10**6), [EvilLog(key, [b"a"]).note()])


@pytest.mark.parametrize(
    "forked",
    [
        pytest.param([b"a", b"X", b"c"], id="same size, other history"),
        pytest.param([b"a", b"X", b"c", b"d"], id="longer, other history"),
        pytest.param([b"a", b"b"], id="shorter"),
    ],
)
def test_a_contradiction_is_refused_with_evidence(tmp_path: Path, key: Ed25519PrivateKey, config: OwnerConfig, forked: list[bytes]) -> None:
    home = Home(tmp_path)
    honest = EvilLog(key, [b"a", b"b", b"c"])
    follow_log(home, config, honest)
    with pytest.raises(LogInconsistentError) as caught:
        follow_log(home, config, EvilLog(key, forked))
    [evidence] = home.checkpoint.parent.glob("contradiction-*.json")
    assert str(evidence) in str(caught.value)
    document = json.loads(evidence.read_bytes())
    older = verify_checkpoint(document["older"].encode(), document["log_key"])
    newer = verify_checkpoint(document["newer"].encode(), document["log_key"])
    assert (older.size, newer.size) == (3, len(forked))
    seen = last_checkpoint(home, config.pinned.log_key)
    assert seen is not None
    assert seen.note == honest.note()


def test_a_receipts_checkpoint_is_compared_too(tmp_path: Path, key: Ed25519PrivateKey, config: OwnerConfig) -> None:
    home = Home(tmp_path)
    follow_log(home, config, EvilLog(key, [b"a"]))
    split_view = EvilLog(key, [b"a", b"only shown to me"]).note()
    with pytest.raises(LogInconsistentError):
        follow_log(home, config, EvilLog(key, [b"a", b"b", b"c"]), [split_view])


def test_a_wrong_proof_and_another_key_are_refused(tmp_path: Path, key: Ed25519PrivateKey, config: OwnerConfig) -> None:
    home = Home(tmp_path)
    follow_log(home, config, EvilLog(key, [b"a", b"b"]))
    with pytest.raises(LogInconsistentError):
        follow_log(home, config, EvilLog(key, [b"a", b"b", b"c"], proof=[b"\0" * 32]))
    with pytest.raises(LogError):
        follow_log(home, config, EvilLog(generate_log_key(), [b"a", b"b", b"c"]))


def test_a_changed_kept_checkpoint_is_noticed(tmp_path: Path, key: Ed25519PrivateKey, config: OwnerConfig) -> None:
    home, log = Home(tmp_path), EvilLog(key, [b"a", b"b"])
    follow_log(home, config, log)
    note = home.checkpoint.read_bytes()
    home.checkpoint.write_bytes(note.replace(b"\n2\n", b"\n1\n", 1))
    with pytest.raises(LogError):
        follow_log(home, config, log)
