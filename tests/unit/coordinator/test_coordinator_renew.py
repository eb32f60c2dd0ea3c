"""Renewal and rotation at the coordinator: who may ask for what, and that a repeated request gives the same entry."""

from __future__ import annotations

import dataclasses

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

import coordinator.usecases.renew as renew_module
from common.errors import (
    CertificateError,
    ForbiddenError,
    FormatError,
    QuotaError,
    RevokedError,
    SignerError,
    UnauthenticatedError,
)
from common.formats.entries import parse_entry
from common.formats.fields import format_time, utc_now
from common.formats.statements import KeyRecord, NewKeys
from common.trust.certificates import make_csr
from common.trust.keys import generate_signing_key
from common.trust.statements import sign_statement
from coordinator.usecases.issue import key_text
from coordinator.usecases.renew import Renewal, renew_certificates
from coordinator.usecases.revoke import revoke_owner
from tests.support.coordinator_world import CONSORTIUM, Grove, Member


def _pem(member: Member) -> bytes:
    return x509.load_der_x509_certificate(member.transport_der).public_bytes(Encoding.PEM)


def _csrs(member: Member) -> dict[str, bytes]:
    return {"signing_csr": make_csr(member.signing_key, member.uri), "transport_csr": make_csr(member.transport_key, member.uri)}


def _with_new_keys(member: Member) -> Member:
    return dataclasses.replace(member, signing_key=generate_signing_key(), transport_key=generate_signing_key())


def _authorise(old: Member, new: Member, **change: object) -> bytes:
    keys = (
        KeyRecord(purpose="signing", key=key_text(new.signing_key.public_key())),
        KeyRecord(purpose="transport", key=key_text(new.transport_key.public_key())),
    )
    fields = {
        "schema": "elmgrove.new-keys/v1", "consortium": CONSORTIUM, "created": format_time(utc_now()), "holder": new.uri, "keys": keys,
    }  # fmt: skip
    return sign_statement(NewKeys.model_validate(fields | change), old.signing_key, old.signing_certificate)


def _certified(member: Member, renewal: Renewal) -> Member:
    signing = x509.load_der_x509_certificate(renewal.certificates["signing"])
    return dataclasses.replace(member, signing_certificate=signing, transport_der=renewal.certificates["transport"])


def _kind(grove: Grove, renewal: Renewal) -> str:
    [entry] = grove.coordinator.ledger.view.entries(renewal.receipt.index, renewal.receipt.index + 1)
    return parse_entry(entry).kind


def test_renewed_certificates_are_for_the_same_keys_and_are_logged(grove: Grove) -> None:
    anna = grove.join("anna")
    renewal = renew_certificates(grove.coordinator, _pem(anna), **_csrs(anna), authorisation=b"")
    assert _kind(grove, renewal) == "certificates-renewed"
    renewed = _certified(anna, renewal)
    assert renewed.signing_certificate.public_key() == anna.signing_key.public_key()
    assert renewed.signing_certificate != anna.signing_certificate
    anchor = grove.publish()
    grove.push(renewed, renewed.package(grove.folder / "package", anchor))
    grove.push(anna, anna.package(grove.folder / "other", anchor, name="moss"))


def test_a_repeated_request_gives_the_same_certificates(grove: Grove) -> None:
    anna = grove.join("anna")
    request = _csrs(anna)
    first = renew_certificates(grove.coordinator, _pem(anna), **request, authorisation=b"")
    grove.reopen()
    assert renew_certificates(grove.coordinator, _pem(anna), **request, authorisation=b"").certificates == first.certificates
    assert grove.coordinator.ledger.state().size == 3


def test_new_keys_replace_the_old_ones_and_a_lost_answer_can_be_asked_for_again(grove: Grove) -> None:
    anna = grove.join("anna")
    anchor = grove.publish()
    grove.push(anna, anna.package(grove.folder / "one", anchor))
    new = _with_new_keys(anna)
    request = {**_csrs(new), "authorisation": _authorise(anna, new)}
    first = renew_certificates(grove.coordinator, _pem(anna), **request)
    assert _kind(grove, first) == "key-rotated"
    again = renew_certificates(grove.coordinator, _pem(anna), **request)
    assert again.certificates == first.certificates
    certified = _certified(new, first)
    with pytest.raises(UnauthenticatedError):
        renew_certificates(grove.coordinator, _pem(anna), **_csrs(anna), authorisation=b"")
    with pytest.raises(CertificateError):
        grove.offer(anna, anna.package(grove.folder / "old", anchor, name="elm"))
    digest = grove.coordinator.ledger.state().experts["tides"][-1].digest
    grove.push(certified, certified.package(grove.folder / "two", anchor, version=2, supersedes=digest, seed=2))
    assert [each.status for each in grove.coordinator.ledger.state().experts["tides"]] == ["superseded", "in-force"]


def test_a_new_key_needs_the_word_of_the_old_one(grove: Grove) -> None:
    anna, ben = grove.join("anna"), grove.join("ben")
    new = _with_new_keys(anna)
    before = grove.coordinator.ledger.state().size
    with pytest.raises(ForbiddenError, match="needs an authorisation"):
        renew_certificates(grove.coordinator, _pem(anna), **_csrs(new), authorisation=b"")
    with pytest.raises(SignerError):
        renew_certificates(grove.coordinator, _pem(anna), **_csrs(new), authorisation=_authorise(ben, new))
    with pytest.raises(SignerError):
        renew_certificates(grove.coordinator, _pem(anna), **_csrs(new), authorisation=_authorise(anna, new, holder=ben.uri))
    with pytest.raises(ForbiddenError, match="other keys"):
        renew_certificates(grove.coordinator, _pem(anna), **_csrs(new), authorisation=_authorise(anna, _with_new_keys(anna)))
    with pytest.raises(ForbiddenError, match="already"):
        renew_certificates(grove.coordinator, _pem(anna), **_csrs(anna), authorisation=_authorise(anna, anna))
    with pytest.raises(FormatError):
        renew_certificates(grove.coordinator, _pem(anna), **_csrs(new), authorisation=b"x" * 20_000)
    with pytest.raises(FormatError):
        renew_certificates(grove.coordinator, _pem(anna), signing_csr=b"", transport_csr=b"", authorisation=b"")
    with pytest.raises(FormatError, match="two keys"):
        renew_certificates(
            grove.coordinator, _pem(anna), **(_csrs(anna) | {"transport_csr": make_csr(anna.signing_key, anna.uri)}), authorisation=b""
        )
    assert grove.coordinator.ledger.state().size == before


def test_a_revoked_owner_renews_nothing(grove: Grove) -> None:
    anna = grove.join("anna")
    revoke_owner(grove.coordinator, "anna", reason="left")
    with pytest.raises(RevokedError):
        renew_certificates(grove.coordinator, _pem(anna), **_csrs(anna), authorisation=b"")


def test_renewing_without_end_is_refused(grove: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renew_module, "_PER_DAY", 3)
    anna = grove.join("anna")
    for _ in range(2):
        renew_certificates(grove.coordinator, _pem(anna), **_csrs(anna), authorisation=b"")
    with pytest.raises(QuotaError):
        renew_certificates(grove.coordinator, _pem(anna), **_csrs(anna), authorisation=b"")
    assert "renew" in grove.home.audit.read_text().splitlines()[-1]
