"""Tree hashing and proofs: published answers, agreement with the recursive definition, and no corrupted proof that passes."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import LogError, LogInconsistentError
from common.translog.merkle import (
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    nodes_of,
    root_hash,
    subtree_hash,
    verify_consistency,
    verify_inclusion,
)

# The eight leaves of the Certificate Transparency reference implementation, and the root of each of its first n leaves.
CT_LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]  # fmt: skip
CT_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
SIZES = range(1, 65)
LEAVES = [leaf_hash(bytes([number])) for number in range(64)]
NODE = nodes_of(LEAVES)


def naive_root(leaves: list[bytes]) -> bytes:
    """``MTH`` word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


def naive_path(m: int, leaves: list[bytes]) -> list[bytes]:
    """``PATH(m, D[n])`` word for word."""
    if len(leaves) == 1:
        return []
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if m < k:
        return [*naive_path(m, leaves[:k]), naive_root(leaves[k:])]
    return [*naive_path(m - k, leaves[k:]), naive_root(leaves[:k])]


def naive_subproof(m: int, leaves: list[bytes], whole: bool) -> list[bytes]:
    """``SUBPROOF(m, D[n], b)`` word for word."""
    if m == len(leaves):
        return [] if whole else [naive_root(leaves)]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if m <= k:
        return [*naive_subproof(m, leaves[:k], whole), naive_root(leaves[k:])]
    return [*naive_subproof(m - k, leaves[k:], False), naive_root(leaves[:k])]


@pytest.mark.parametrize("size", range(9))
def test_roots_of_the_reference_tree(size: int) -> None:
    assert root_hash([leaf_hash(leaf) for leaf in CT_LEAVES[:size]]).hex() == CT_ROOTS[size]


def test_published_inclusion_and_consistency_proofs_of_the_reference_tree() -> None:
    node = nodes_of([leaf_hash(leaf) for leaf in CT_LEAVES])
    expected = ["96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"]  # fmt: skip
    assert [each.hex() for each in inclusion_proof(0, 8, node)] == expected
    expected = ["0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"]  # fmt: skip
    assert [each.hex() for each in consistency_proof(6, 8, node)] == expected


def test_leaves_and_nodes_are_told_apart() -> None:
    left, right = LEAVES[:2]
    assert leaf_hash(left + right) != node_hash(left, right)
    with pytest.raises(LogError):
        verify_inclusion(leaf_hash(left + right), 0, 1, [], root_hash(LEAVES[:2]))


@pytest.mark.parametrize("size", SIZES)
def test_roots_and_proofs_are_those_of_the_recursive_definition(size: int) -> None:
    leaves = LEAVES[:size]
    root = naive_root(leaves)
    assert root_hash(leaves) == root
    assert subtree_hash(0, size, NODE) == root
    for index in range(size):
        proof = inclusion_proof(index, size, NODE)
        assert proof == naive_path(index, leaves)
        verify_inclusion(leaves[index], index, size, proof, root)
    for old in range(1, size + 1):
        proof = consistency_proof(old, size, NODE)
        assert proof == naive_subproof(old, leaves, True)
        verify_consistency(old, size, proof, root_hash(leaves[:old]), root)


def _flips(raw: bytes) -> list[bytes]:
    return [raw[: bit // 8] + bytes([raw[bit // 8] ^ 1 << bit % 8]) + raw[bit // 8 + 1 :] for bit in range(len(raw) * 8)]


def test_every_flipped_bit_of_an_inclusion_proof_is_refused() -> None:
    for index, size in ((0, 1), (0, 7), (5, 7), (6, 7), (12, 13)):
        proof, root = inclusion_proof(index, size, NODE), root_hash(LEAVES[:size])
        claims = [(leaf, proof, root) for leaf in _flips(LEAVES[index])]
        claims += [(LEAVES[index], proof, wrong) for wrong in _flips(root)]
        claims += [(LEAVES[index], [*proof[:at], wrong, *proof[at + 1 :]], root) for at, each in enumerate(proof) for wrong in _flips(each)]
        for claim in claims:
            with pytest.raises(LogError):
                verify_inclusion(claim[0], index, size, claim[1], claim[2])


def test_every_flipped_bit_of_a_consistency_proof_is_refused() -> None:
    for old, new in ((1, 2), (4, 8), (6, 8), (3, 7), (7, 13)):
        proof, before, after = consistency_proof(old, new, NODE), root_hash(LEAVES[:old]), root_hash(LEAVES[:new])
        claims = [(proof, wrong, after) for wrong in _flips(before)] + [(proof, before, wrong) for wrong in _flips(after)]
        claims += [([*proof[:at], wrong, *proof[at + 1 :]], before, after) for at, each in enumerate(proof) for wrong in _flips(each)]
        for claim in claims:
            with pytest.raises(LogInconsistentError):
                verify_consistency(old, new, *claim)


@pytest.mark.parametrize("size", [2, 3, 5, 8, 13, 33])
def test_a_proof_holds_for_its_own_index_and_size_alone(size: int) -> None:
    root = root_hash(LEAVES[:size])
    for index in range(size):
        proof = inclusion_proof(index, size, NODE)
        for other in range(-1, size + 1):
            if other != index:
                with pytest.raises(LogError):
                    verify_inclusion(LEAVES[index], other, size, proof, root)
        for wrong in ([*proof, LEAVES[0]], [LEAVES[0], *proof], proof[1:], proof[:-1]):
            if wrong != proof:
                with pytest.raises(LogError):
                    verify_inclusion(LEAVES[index], index, size, wrong, root)


@pytest.mark.parametrize("new", [2, 3, 5, 8, 13, 33])
def test_a_consistency_proof_of_another_length_is_refused(new: int) -> None:
    for old in range(1, new):
        proof, roots = consistency_proof(old, new, NODE), (root_hash(LEAVES[:old]), root_hash(LEAVES[:new]))
        for wrong in ([*proof, LEAVES[0]], [LEAVES[0], *proof], proof[1:], proof[:-1], []):
            with pytest.raises(LogError):
                verify_consistency(old, new, wrong, *roots)


def test_forks_and_rollbacks_have_their_own_error() -> None:
    forked = [*LEAVES[:9], leaf_hash(b"other"), *LEAVES[10:20]]
    honest, fork = root_hash(LEAVES[:15]), root_hash(forked)
    with pytest.raises(LogInconsistentError, match="does not continue"):
        verify_consistency(15, 20, consistency_proof(15, 20, nodes_of(forked)), honest, fork)
    with pytest.raises(LogInconsistentError, match="two different histories"):
        verify_consistency(15, 15, [], honest, root_hash(forked[:15]))
    with pytest.raises(LogInconsistentError, match="shrank from 20 entries to 15"):
        verify_consistency(20, 15, [], root_hash(LEAVES[:20]), honest)


def test_edges_of_the_definition() -> None:
    root = root_hash(LEAVES[:3])
    verify_consistency(3, 3, [], root, root)
    for old, new, proof in ((0, 3, []), (-1, 3, []), (3, 3, [root])):
        with pytest.raises(LogError):
            verify_consistency(old, new, proof, root, root)
    for old, new in ((0, 3), (4, 3), (-1, 3)):
        with pytest.raises(LogError):
            consistency_proof(old, new, NODE)
    for index, size in ((3, 3), (-1, 3), (0, 0)):
        with pytest.raises(LogError):
            inclusion_proof(index, size, NODE)
    for wrong in ([b"short"], [LEAVES[0]] * 65 + [LEAVES[0]] * 2):
        with pytest.raises(LogError, match="32 bytes"):
            verify_inclusion(LEAVES[0], 0, 2, wrong, root)
        with pytest.raises(LogError, match="32 bytes"):
            verify_consistency(3, 5, wrong, root, root)


@settings(max_examples=200, deadline=None)
@given(
    index=st.integers(-2, 2**63), size=st.integers(-2, 2**63), old=st.integers(-2, 2**63),
    proof=st.lists(st.sampled_from([*LEAVES[:3], b"short"]), max_size=70),
)  # fmt: skip
def test_random_claims_raise_only_our_errors(index: int, size: int, old: int, proof: list[bytes]) -> None:
    with pytest.raises(LogError):
        verify_inclusion(LEAVES[5], index, size, proof, LEAVES[6])
    with pytest.raises(LogError):
        verify_consistency(old, size, proof, LEAVES[5], LEAVES[6])
