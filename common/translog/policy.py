"""C2SP tlog-policy: which logs are believed, which witnesses are known, and how many of them must have cosigned a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from common.errors import FormatError, LimitError, LogError, QuorumError
from common.translog.checkpoint import Checkpoint, verify_checkpoint
from common.translog.cosignature import verify_cosignature
from common.translog.note import ALG_COSIGNATURE, ALG_ED25519, parse_note, parse_vkey

__all__ = ["Cosigned", "Policy", "PolicyVerdict", "parse_policy", "verify_policy"]

_MAX_BYTES: Final = 64 * 1024  # bytes; a policy of 100 witnesses has about 15 KiB
_MAX_LINES: Final = 512
_REFUSED_BYTES = re.compile(rb"[^\x09\x0a\x20-\x7e\x80-\xff]")
_BLANK = re.compile(rb"[ \t]+")
_NUMBER = re.compile(rb"[1-9][0-9]{0,3}")
_NONE: Final = b"none"


@dataclass(frozen=True, slots=True)
class _Group:
    """A name that witnesses a checkpoint when ``threshold`` of its members do."""

    name: bytes
    members: tuple[bytes, ...]
    threshold: int


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy as its file gives it; made by :func:`parse_policy` alone. Names are opaque bytes."""

    logs: tuple[str, ...]
    """Verifier keys."""
    witnesses: tuple[tuple[bytes, str], ...]
    """Names in the policy, and verifier keys."""
    groups: tuple[_Group, ...]
    """In the order of the file, in which each refers to earlier ones only."""
    quorum: bytes

    def is_met_by(self, cosigned: set[bytes]) -> bool:
        """Whether cosignatures of the witnesses of these names make the quorum."""
        met = {_NONE, *cosigned}
        for group in self.groups:
            if sum(member in met for member in group.members) >= group.threshold:
                met.add(group.name)
        return self.quorum in met


@dataclass(frozen=True, slots=True)
class Cosigned:
    """A witness of the policy whose cosignature the checkpoint carries: its name there, its key's name, and when it saw the checkpoint."""

    name: str
    key_name: str
    time: datetime


@dataclass(frozen=True, slots=True)
class PolicyVerdict:
    """A checkpoint judged by a policy; made by :func:`verify_policy` alone. All signatures that count were verified."""

    checkpoint: Checkpoint
    cosigned: tuple[Cosigned, ...]
    missing: tuple[str, ...]
    """Names of the policy's witnesses that have not cosigned."""
    holds: bool
    """Whether the quorum is met."""

    def require_quorum(self) -> None:
        """Do nothing if the quorum is met.

        Raises:
            QuorumError: it is not.
        """
        if not self.holds:
            seen = ", ".join(each.name for each in self.cosigned) or "nobody"
            raise QuorumError(
                f"The checkpoint is cosigned by {seen}, which is not the quorum of the policy; missing: {', '.join(self.missing)}."
            )


def parse_policy(raw: bytes) -> Policy:
    """Read a policy file.

    Raises:
        LimitError: too large.
        FormatError: a line is malformed, a name is used twice or unknown, a key comes twice or is of the wrong kind, or there is not
            exactly one quorum; the message names the line.
    """
    lines = raw.split(b"\n")
    if len(raw) > _MAX_BYTES or len(lines) > _MAX_LINES:
        raise LimitError(f"A policy has at most {_MAX_BYTES} bytes and {_MAX_LINES} lines.")
    if _REFUSED_BYTES.search(raw):
        raise FormatError("The policy holds a control character.")
    if lines.pop():
        raise FormatError("The policy's last line does not end with a line feed.")
    reading = _Reading()
    for number, line in enumerate(lines, start=1):
        words = [word for word in _BLANK.split(line) if word]
        if words and not words[0].startswith(b"#"):
            try:
                reading.line(words)
            except FormatError as error:
                raise FormatError(f"Policy, line {number}: {error}") from error
    return reading.result()


class _Reading:
    """A policy as far as it was read; one method per kind of line."""

    def __init__(self) -> None:
        self._logs: list[str] = []
        self._witnesses: dict[bytes, str] = {}
        self._groups: dict[bytes, _Group] = {}
        self._keys: set[bytes] = set()
        self._members: set[bytes] = set()
        self._quorum: bytes | None = None

    def line(self, words: Sequence[bytes]) -> None:
        """Take one line's words."""
        kinds: dict[bytes, Callable[[Sequence[bytes]], None]] = {
            b"log": self._log, b"witness": self._witness, b"group": self._group, b"quorum": self._set_quorum,
        }  # fmt: skip
        kind = kinds.get(words[0])
        if kind is None:
            raise FormatError("it does not begin with log, witness, group or quorum.")
        kind(words[1:])

    def result(self) -> Policy:
        """The policy."""
        if self._quorum is None:
            raise FormatError("The policy has no quorum line.")
        return Policy(tuple(self._logs), tuple(self._witnesses.items()), tuple(self._groups.values()), self._quorum)

    def _log(self, words: Sequence[bytes]) -> None:
        _require(1 <= len(words) <= 2, "a log has a key and perhaps a URL.")
        self._logs.append(self._key(words[0], ALG_ED25519))

    def _witness(self, words: Sequence[bytes]) -> None:
        _require(2 <= len(words) <= 3, "a witness has a name, a key and perhaps a URL.")
        self._check_new(words[0])
        self._witnesses[words[0]] = self._key(words[1], ALG_COSIGNATURE)

    def _group(self, words: Sequence[bytes]) -> None:
        _require(len(words) >= 3, "a group has a name, a number and members.")
        name, wanted, *members = words
        self._check_new(name)
        for member in members:
            self._check_known(member)
            _require(member not in self._members, "a name is a member of a group already.")
            self._members.add(member)
        shorthand = {b"any": 1, b"all": len(members)}
        _require(wanted in shorthand or _NUMBER.fullmatch(wanted) is not None, "the number of a group is any, all or a decimal number.")
        threshold = shorthand[wanted] if wanted in shorthand else int(wanted)
        _require(threshold <= len(members), "the number of a group exceeds its members.")
        self._groups[name] = _Group(name, tuple(members), threshold)

    def _set_quorum(self, words: Sequence[bytes]) -> None:
        _require(len(words) == 1, "a quorum is one name.")
        _require(self._quorum is None, "there is a second quorum.")
        if words[0] != _NONE:
            self._check_known(words[0])
        self._quorum = words[0]

    def _check_new(self, name: bytes) -> None:
        _require(name != _NONE and name not in self._witnesses and name not in self._groups, "its name is taken.")

    def _check_known(self, name: bytes) -> None:
        _require(name in self._witnesses or name in self._groups, "a name is not defined above.")

    def _key(self, word: bytes, algorithm: int) -> str:
        text = _text(word)
        key = parse_vkey(text)
        _require(key.algorithm == algorithm, "its key is of the wrong kind: logs sign notes, witnesses cosign.")
        _require(key.public_bytes not in self._keys, "its key was listed before, be it under another name.")
        self._keys.add(key.public_bytes)
        return text


def _require(holds: bool, broken: str) -> None:
    if not holds:
        raise FormatError(broken)


def _text(word: bytes) -> str:
    try:
        return word.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError("its key is not UTF-8.") from error


def verify_policy(note: bytes, policy: Policy, log_key: str) -> PolicyVerdict:
    """Judge a checkpoint by a policy.

    (1) the log whose key is ``log_key`` has signed the checkpoint, and is one of the policy's, if it lists any; (2) each line of one of
    its witnesses is the only one of that witness and holds over this checkpoint; lines of others are ignored. (3) The quorum is worked
    out; the caller decides what follows if it is not met, or calls :meth:`PolicyVerdict.require_quorum`.

    Raises:
        FormatError, LimitError: the note is no checkpoint.
        LogError: (1) failed.
        SignatureError: (2) failed.
    """
    checkpoint = verify_checkpoint(note, log_key)  # (1)
    if policy.logs and parse_vkey(log_key) not in {parse_vkey(vkey) for vkey in policy.logs}:
        raise LogError("The policy does not list the key of this log.")
    lines = {(line.name, line.key_id) for line in parse_note(note)[1]}
    cosigned: dict[bytes, Cosigned] = {}
    for name, vkey in policy.witnesses:  # (2)
        key = parse_vkey(vkey)
        if (key.name, key.key_id) in lines:
            cosigned[name] = Cosigned(name.decode("utf-8", "replace"), key.name, verify_cosignature(note, vkey).time)
    missing = tuple(name.decode("utf-8", "replace") for name, _ in policy.witnesses if name not in cosigned)
    return PolicyVerdict(checkpoint, tuple(cosigned.values()), missing, policy.is_met_by(set(cosigned)))  # (3)
