"""The fold is pure and total: whatever entries and documents come, only ``LogError`` leaves it, and it may be cut anywhere."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import LogError
from common.formats.fields import format_time, owner_uri
from common.formats.manifest import ExpertSlot
from common.ledger.fold import fold
from common.ledger.state import ConsortiumState
from tests.unit.ledger.memory_log import MemoryLog, Party

DIGESTS = st.sampled_from(["e" * 64, "f" * 64, "b" * 64])
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def begun() -> MemoryLog:
    """A founded log with two owners, an anchor and an expert."""
    log = MemoryLog()
    log.found()
    log.admit(log.anna)
    log.admit(log.ben)
    anchor = log.publish()
    log.accept(log.anna, "moss", anchor)
    return log


@pytest.fixture(scope="module")
def state(begun: MemoryLog) -> ConsortiumState:
    return fold(begun.entries, begun.fetch, begun.root)


class Actors:
    """Parties and digests that a random history draws from; keys are few, so that entries often fit each other by chance."""

    def __init__(self, log: MemoryLog, draw: Callable[[Any], Any]) -> None:
        self.log, self._draw = log, draw
        stranger = log.party(owner_uri("grove", "carl"), "signing")
        spare = log.party(log.anna.uri, "signing", "transport")
        self.parties = [log.operator, log.anna, log.ben, stranger, spare, log.party(log.operator.uri, "signing")]
        self.digests = [json.loads(entry)["document"] for entry in log.entries] + list(log.documents)

    def party(self) -> Party:
        return self._draw(st.sampled_from(self.parties))

    def operator(self) -> Party:
        """The operator, usually."""
        return self._draw(st.sampled_from([self.log.operator] * 4 + self.parties))

    def digest(self) -> str:
        return self._draw(st.sampled_from(self.digests) | DIGESTS)

    def name(self) -> str:
        return self._draw(st.sampled_from(["moss", "fern"]))

    def step(self, state: ConsortiumState) -> None:
        """Append one entry, which may or may not be right after ``state``."""
        log = self.log
        steps: list[Callable[[], object]] = [
            lambda: log.found(),
            lambda: log.admit(self.party(), by=self.operator()),
            lambda: log.revoke(self.party(), by=self.operator()),
            lambda: log.renew(self.party(), by=self.operator()),
            lambda: log.rotate(self.party(), self.party(), by=self.operator()),
            lambda: log.rotate(log.anna, self.parties[4]),
            lambda: log.publish(by=self.operator(), licence=self._draw(st.sampled_from(["", "x"]))),
            lambda: self._accept(state),
            lambda: self._accept(state),
            lambda: self._withdraw(state),
            lambda: self._assemble(state),
            lambda: self._tune(state),
            self._repeat,
            lambda: log.append_raw("expert-accepted", "expert/moss@1", self.digest()),
            lambda: log.entries.append(self._draw(st.binary(max_size=40))),
        ]
        self._draw(st.sampled_from(steps))()
        self.digests = list(log.documents)

    def _accept(self, state: ConsortiumState) -> None:
        newest = state.current_expert(name := self.name())
        version, supersedes = (newest.version + 1, newest.digest) if newest else (1, None)
        if self._draw(st.sampled_from([False, False, True])):
            version, supersedes = self._draw(st.sampled_from([(1, None), (2, self.digest())]))
        anchor = self._draw(st.sampled_from([*state.anchors, "b" * 64]))
        owner = self._draw(st.sampled_from([self.log.anna, self.log.ben, *self.parties]))
        self.log.accept(owner, name, anchor, version=version, supersedes=supersedes)

    def _withdraw(self, state: ConsortiumState) -> None:
        newest = state.current_expert(name := self.name())
        digest, version = (newest.digest, newest.version) if newest else (self.digest(), 1)
        self.log.withdraw(self.party(), name, self._draw(st.sampled_from([digest, digest, self.digest()])), version)

    def _assemble(self, state: ConsortiumState) -> None:
        versions = self._draw(st.sampled_from([state.experts_in_force(), tuple(each[-1] for each in state.experts.values())]))
        slots = [
            ExpertSlot(slot=slot, name=each.name, version=each.version, owner=each.owner, manifest=each.digest)
            for slot, each in enumerate(versions, start=1)
        ]
        self.log.assemble(next(iter(state.anchors)), *slots, top_k=self._draw(st.integers(1, 3)))

    def _tune(self, state: ConsortiumState) -> None:
        base = state.models[-1].digest if state.models else self.digest()
        self.log.tune(base, *self._draw(st.lists(st.sampled_from(["moss", "fern"]), max_size=2)))

    def _repeat(self) -> None:
        entry = json.loads(self._draw(st.sampled_from(self.log.entries[:5])))
        self.log.now += timedelta(minutes=1)
        self.log.append_raw(entry["kind"], entry["subject"], entry["document"])


def _outcome(entries: list[bytes], log: MemoryLog, state: ConsortiumState | None = None) -> ConsortiumState | str:
    try:
        return fold(entries, log.fetch, log.root, state=state)
    except LogError as error:
        return str(error)


@FEW
@given(data=st.data())
def test_random_histories_fold_or_fail_with_the_index_and_may_be_cut_anywhere(
    begun: MemoryLog, state: ConsortiumState, data: st.DataObject
) -> None:
    """Entries that fit go on; one that does not is refused at its index, alone and at the end of the whole log, and changes nothing."""
    log, now = begun.fork(), state
    actors = Actors(log, data.draw)
    for _ in range(data.draw(st.integers(3, 12))):
        kept = copy.deepcopy((now.owners, now.experts, now.certificates))
        actors.step(now)
        outcome = _outcome(log.entries[now.size :], log, now)
        assert (now.owners, now.experts, now.certificates) == kept, "the earlier state was changed"
        if isinstance(outcome, str):
            assert outcome.startswith(f"Log entry {now.size}: ")
            assert _outcome(log.entries, log) == outcome
            del log.entries[now.size :]
        else:
            now = outcome
    assert fold(log.entries, log.fetch, log.root) == now
    cut = data.draw(st.integers(1, len(log.entries)))
    assert fold(log.entries[cut:], log.fetch, log.root, state=fold(log.entries[:cut], log.fetch, log.root)) == now


@MANY
@given(data=st.data())
def test_changed_bytes_of_documents_end_in_the_documented_error(begun: MemoryLog, data: st.DataObject) -> None:
    """Documents are replaced by damaged ones under their own digest, so that every layer below has to hold."""
    log = begun.fork()
    index = data.draw(st.integers(0, len(log.entries) - 1))
    entry = json.loads(log.entries[index])
    raw = bytearray(log.documents[entry["document"]])
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    changed = bytes(raw[: data.draw(st.integers(1, len(raw)) | st.just(len(raw)))])
    entry["document"] = log.keep(changed)
    log.entries[index] = json.dumps(entry, separators=(",", ":")).encode()
    outcome = _outcome(log.entries, log)
    assert isinstance(outcome, str) or changed == begun.documents[json.loads(begun.entries[index])["document"]]


@MANY
@given(kind=st.text(max_size=12) | st.sampled_from(["key-rotated", "certificates-renewed", "owner-revoked"]), raw=st.binary(max_size=300))
def test_any_bytes_as_entry_and_document(begun: MemoryLog, state: ConsortiumState, kind: str, raw: bytes) -> None:
    log = begun.fork()
    fields = {
        "schema": "elmgrove.entry/v1", "kind": kind, "subject": "owner/anna", "document": log.keep(raw), "time": format_time(log.now),
    }  # fmt: skip
    entry = json.dumps(fields, separators=(",", ":")).encode("utf-8", "surrogatepass")
    assert isinstance(_outcome([entry], log, state), str)
    assert isinstance(_outcome([raw], log, state), str)
