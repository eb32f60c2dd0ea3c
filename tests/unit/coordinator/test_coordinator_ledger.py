"""Group commit: what is submitted meanwhile shares one checkpoint, is decided in turn, refused alone, and fails or survives together."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from common.errors import ElmgroveError, LogError, StorageError, VersionError
from common.formats.fields import format_time, utc_now
from common.formats.statements import WitnessRegistered
from common.ledger.state import ConsortiumState
from common.translog.cosignature import witness_name, witness_vkey
from common.translog.proof import verify_receipt
from common.translog.reader import FolderReader, read_log
from common.trust.keys import generate_log_key
from common.trust.statements import sign_statement
from coordinator.log.ledger import Ledger, Submission
from coordinator.log.view import LogReceipt, LogView
from tests.support.coordinator_world import CONSORTIUM, Grove, Member


def registration(member: Member) -> Submission:
    statement = WitnessRegistered(
        schema="elmgrove.witness-registered/v1",
        consortium=CONSORTIUM,
        created=format_time(utc_now()),
        owner=member.uri,
        key=witness_vkey(witness_name(CONSORTIUM, member.name), generate_log_key()),
    )
    return Submission(
        "witness-registered", f"owner/{member.name}", sign_statement(statement, member.signing_key, member.signing_certificate)
    )


class Together:
    """Submits several decisions from as many threads while the log is held, so that they are committed as one group."""

    def __init__(self, grove: Grove, decisions: Sequence[Any]) -> None:
        ledger = grove.coordinator.ledger
        self.pool = ThreadPoolExecutor(len(decisions))
        self.futures: list[Future[LogReceipt]] = []
        with ledger.exclusive():
            for waiting, decision in enumerate(decisions, start=1):
                self.futures.append(self.pool.submit(ledger.submit, decision))
                while len(ledger._waiting) < waiting:
                    threading.Event().wait(0.001)

    def results(self) -> list[LogReceipt | ElmgroveError]:
        found: list[LogReceipt | ElmgroveError] = []
        for future in self.futures:
            try:
                found.append(future.result(30))
            except ElmgroveError as error:
                found.append(error)
        self.pool.shutdown()
        return found


def checkpoints(grove: Grove, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    import coordinator.log.writer as writer_module

    written: list[bytes] = []
    real = writer_module.write_atomic

    def counting(path: Path, content: bytes) -> None:
        written.append(content)
        real(path, content)

    monkeypatch.setattr(writer_module, "write_atomic", counting)
    return written


def test_what_is_submitted_meanwhile_shares_one_checkpoint(grove: Grove, anna: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    written, before = checkpoints(grove, monkeypatch), grove.coordinator.ledger.state().size
    submissions = [registration(anna) for _ in range(12)]
    sizes: list[int] = []

    def decide(submission: Submission) -> Any:
        def decision(state: ConsortiumState, time: datetime) -> Submission:
            assert time >= state.time
            sizes.append(state.size)
            return submission

        return decision

    receipts = Together(grove, [decide(submission) for submission in submissions]).results()
    assert len(written) == 1
    assert sizes == list(range(before, before + 12)), "each is decided on the state that the ones before it make"
    for receipt, index in zip(receipts, range(before, before + 12), strict=True):
        assert isinstance(receipt, LogReceipt)
        assert receipt.index == index
        assert verify_receipt(receipt.proof, receipt.entry, grove.coordinator.log_key).checkpoint.size == before + 12
    fresh = Ledger(LogView(grove.home.log, grove.coordinator.log_key), grove.coordinator.root)
    assert fresh.state() == grove.coordinator.ledger.state()


def test_one_that_is_refused_is_refused_alone(grove: Grove, anna: Member) -> None:
    before = grove.coordinator.ledger.state().size
    good, late, wrong = registration(anna), registration(anna), registration(anna)
    wrong = Submission("owner-admitted", wrong.subject, wrong.document)

    def refuse(_: ConsortiumState, __: datetime) -> Submission:
        raise VersionError

    def repeated(state: ConsortiumState, _: datetime) -> int:
        return state.size - 1

    results = Together(grove, [lambda *_: good, refuse, lambda *_: wrong, lambda *_: good, repeated, lambda *_: late]).results()
    kinds = [result.index if isinstance(result, LogReceipt) else type(result) for result in results]
    assert kinds == [before, VersionError, LogError, LogError, before, before + 1]
    assert grove.coordinator.ledger.state().size == before + 2
    assert read_log(FolderReader(grove.home.log), grove.coordinator.log_key).checkpoint.size == before + 2


def test_a_full_disk_fails_the_whole_group_and_nothing_is_logged(grove: Grove, anna: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    before = grove.coordinator.ledger.state()
    submissions = [registration(anna) for _ in range(3)]
    real = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    group = [lambda *_, each=each: each for each in submissions]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", full)
        results = Together(grove, group).results()
    assert os.fsync is real
    assert [type(result) for result in results] == [StorageError] * 3
    assert grove.coordinator.ledger.state() is before
    assert all(isinstance(result, LogReceipt) for result in Together(grove, group).results()), "the same may be submitted again"
    assert grove.coordinator.ledger.state().size == before.size + 3


class _CrashError(BaseException):
    """As a power cut: nothing handles it."""


@pytest.mark.parametrize("survives", range(0, 16, 3))
def test_after_a_crash_a_group_is_there_whole_or_not_at_all(
    grove: Grove, anna: Member, survives: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, submissions, steps = grove.coordinator.ledger.state().size, [registration(anna) for _ in range(3)], 0
    real = os.fsync

    def dying(descriptor: int) -> None:
        nonlocal steps
        steps += 1
        if steps > survives:
            raise _CrashError
        real(descriptor)

    monkeypatch.setattr(os, "fsync", dying)
    together = Together(grove, [lambda *_, each=each: each for each in submissions])
    for future in together.futures:
        future.exception(30)
    monkeypatch.undo()
    size = read_log(FolderReader(grove.home.log), grove.coordinator.log_key).checkpoint.size
    assert size in {before, before + 3}
    grove.reopen()
    assert grove.coordinator.ledger.state().size == size
    grove.join("ben")
    assert read_log(FolderReader(grove.home.log), grove.coordinator.log_key).checkpoint.size == size + 1
