from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import FormatError, LayoutError, NotFoundError, SafetensorsError
from common.weights.index import check_members, list_folder, read_header, scan_file, tensor_digests
from tests.support.tiny_weights import write_safetensors


def test_a_scan_digests_every_tensor_and_the_file_in_one_pass(tmp_path: Path) -> None:
    first, second = os.urandom(2_400_000), os.urandom(16)
    path = tmp_path / "weights.safetensors"
    write_safetensors(path, {"b": ("BF16", (1200, 1000), first), "a": ("F32", (4,), second)})
    scan = scan_file(path)
    assert scan.fault is None
    assert scan.digest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert dict(scan.tensors) == {"b": hashlib.sha256(first).hexdigest(), "a": hashlib.sha256(second).hexdigest()}
    assert tensor_digests(path) == scan.tensors
    assert scan.header == read_header(path)
    plain = scan_file(path, tensors=False, chunks=False)
    assert (plain.header, plain.digest.sha256, dict(plain.tensors)) == (scan.header, scan.digest.sha256, {})


def test_a_pickle_under_a_safetensors_name_is_refused_and_digested_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "evil.safetensors"
    path.write_bytes(pickle.dumps({"w": list(range(1000))}))
    scan = scan_file(path)
    assert isinstance(scan.fault, SafetensorsError)
    assert "evil.safetensors" in str(scan.fault)
    assert scan.digest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for read in (read_header, tensor_digests):
        with pytest.raises(SafetensorsError, match="not a safetensors file"):
            read(path)


def test_other_files_are_digested_without_being_read_as_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    scan = scan_file(tmp_path / "config.json")
    assert (scan.header, scan.fault, dict(scan.tensors)) == (None, None, {})


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=300))
def test_any_bytes_give_a_header_or_a_documented_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "f.safetensors"
    for raw in (content, len(content).to_bytes(8, "little") + content):
        path.write_bytes(raw)
        scan = scan_file(path)
        assert (scan.header is None) == (scan.fault is not None)
        try:
            read_header(path)
        except FormatError:
            assert scan.fault is not None


def test_a_folder_lists_its_regular_files(tmp_path: Path) -> None:
    for name in ("b.json", "a.safetensors"):
        (tmp_path / name).touch()
    assert list_folder(tmp_path) == ("a.safetensors", "b.json")
    with pytest.raises(NotFoundError):
        list_folder(tmp_path / "nothing")
    with pytest.raises(NotFoundError):
        list_folder(tmp_path / "b.json")


@pytest.mark.parametrize("name", [".git", ".hidden", "a b", "ä.json", "x" * 128])
def test_names_that_no_manifest_may_hold_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(LayoutError):
        list_folder(tmp_path)


@pytest.mark.parametrize("make", ["link", "folder", "fifo"])
def test_what_is_not_a_regular_file_is_refused(tmp_path: Path, make: str) -> None:
    path = tmp_path / "thing"
    if make == "link":
        path.symlink_to("/etc/hostname")
    elif make == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(LayoutError, match="thing"):
        list_folder(tmp_path)


def test_missing_and_surplus_members_are_named() -> None:
    check_members(["a"], ["a"], "it")
    with pytest.raises(LayoutError, match="it lacks b"):
        check_members(["a"], ["a", "b"], "it")
    with pytest.raises(LayoutError, match="it holds b and 1 more"):
        check_members(["a", "b", "c"], ["a"], "it")
