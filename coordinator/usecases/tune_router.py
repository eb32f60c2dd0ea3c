"""Tuning the router of an assembled model: a new folder that differs in router rows alone, signed, and logged as what it is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from common.errors import AlreadyExistsError, NotFoundError, NotLoggedError, UsageError, WithdrawnError
from common.files import storage_errors
from common.formats.fields import format_time, utc_now
from common.formats.layout import PUBLIC_SAMPLE_NAME
from common.formats.manifest import MANIFEST_NAME
from common.formats.statements import ProxyUse, RouterTuned
from common.ledger.state import ConsortiumState, ModelState
from common.progress import ProgressSink, silent
from common.trust.oms import sign_resources
from common.trust.statements import sign_statement
from common.weights.packages import VerifiedModel, verify_model
from common.weights.sources import read_manifest
from common.weights.tuned import write_tuned
from coordinator.log.view import LogReceipt
from coordinator.usecases.context import Coordinator

__all__ = ["PublicSample", "Tune", "TunedModel", "Tuning", "tune_router"]


@dataclass(frozen=True, slots=True)
class PublicSample:
    """An anchor's public text as the coordinator keeps it: under another name than ``public-sample.jsonl.gz``."""

    anchor: str
    path: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class Tuning:
    """What tuning gave: the bytes of every router ``[N, H]`` in the model's dtype, by tensor name, and what it was given.

    ``proxies`` maps experts to the SHA-256 of their lists or texts; ``settings`` are what the log shall say of the run.
    """

    routers: Mapping[str, bytes]
    proxies: Mapping[str, str]
    settings: Mapping[str, int | str]


Tune = Callable[[Path, PublicSample | None], Tuning]
"""From the model's folder and its anchor's public sample, if the anchor has one; the tensors are computed elsewhere."""


@dataclass(frozen=True, slots=True)
class TunedModel:
    """A tuned model's folder, and the entry that says what was done."""

    digest: str
    base: str
    proxies: tuple[ProxyUse, ...]
    receipt: LogReceipt


def tune_router(coordinator: Coordinator, folder: Path, out: Path, *, tune: Tune, progress: ProgressSink = silent) -> TunedModel:
    """Write the model folder ``out`` with tuned rows; it appears whole, signed and logged, or not at all.

    Args:
        coordinator: who tunes.
        folder: an assembled model of this consortium; stays as it is.
        out: folder to make; must not exist.
        tune: computes the rows.
        progress: told of the bytes verified, copied and hashed.

    Raises:
        NotLoggedError: the log does not know the model.
        UsageError: the model is tuned already.
        WithdrawnError: an expert of the model is not in force, or went out of force meanwhile.
        NotFoundError: proxies are for an expert that the model does not hold.
        AlreadyExistsError: ``out`` exists.
        SignatureError, DigestError, LayoutError: the model is not the one that was logged.
        StorageError: the disk is full or not writable.
    """
    with storage_errors(str(out)):
        if out.exists():
            raise AlreadyExistsError(f"{out} exists already; choose another name or remove it.")
    state = coordinator.ledger.state()
    base = _base(state, folder)
    _check_in_force(state, base, utc_now())
    model = verify_model(folder, coordinator.root, base.assembled_at, progress=progress)
    tuning = tune(folder, _public_sample(coordinator, state, base))
    proxies = _proxies(base, tuning)
    operator = coordinator.keys.signing("operator")
    logged: list[LogReceipt] = []

    def sign(resources: Mapping[str, str]) -> bytes:
        bundle = sign_resources(resources, out.name, operator.key, operator.certificate)
        logged.append(_log(coordinator, model, base, resources[MANIFEST_NAME], proxies, tuning.settings))
        return bundle

    raw = write_tuned(model, tuning.routers, out, progress=progress, sign=sign)
    digest = hashlib.sha256(raw).hexdigest()
    coordinator.audit.record("router-tuned", manifest=digest, base=base.digest, index=logged[0].index)
    return TunedModel(digest, base.digest, proxies, logged[0])


def _base(state: ConsortiumState, folder: Path) -> ModelState:
    digest = hashlib.sha256(read_manifest(folder)).hexdigest()
    found = next((model for model in state.models if model.digest == digest), None)
    if found is not None:
        return found
    if any(tuned.digest == digest for tuned in state.tuned):
        raise UsageError(f"{folder} is tuned already. Tune the assembled model that it was made from.")
    raise NotLoggedError(f"The log has no entry for the assembly of {folder}.")


def _check_in_force(state: ConsortiumState, base: ModelState, at: datetime) -> None:
    in_force = {expert.digest for expert in state.experts_in_force(anchor=base.statement.anchor, at=at)}
    for slot in base.statement.experts:
        if slot.manifest not in in_force:
            raise WithdrawnError(f"Expert {slot.name} of this model is not in force. Assemble without it and tune that model.")


def _public_sample(coordinator: Coordinator, state: ConsortiumState, base: ModelState) -> PublicSample | None:
    anchor = state.anchors[base.statement.anchor]
    entry = next((entry for entry in anchor.manifest.files if entry.name == PUBLIC_SAMPLE_NAME and entry.size), None)
    return None if entry is None else PublicSample(anchor.digest, coordinator.blobs.path(entry.sha256), entry.sha256)


def _proxies(base: ModelState, tuning: Tuning) -> tuple[ProxyUse, ...]:
    names = [slot.name for slot in base.statement.experts]
    strange = sorted(set(tuning.proxies) - set(names))
    if strange:
        raise NotFoundError(f"The model holds no expert {strange[0]}, so there can be no proxies for it.")
    return tuple(ProxyUse(expert=name, sha256=tuning.proxies[name]) for name in names if name in tuning.proxies)


def _log(
    coordinator: Coordinator,
    model: VerifiedModel,
    base: ModelState,
    manifest: str,
    proxies: tuple[ProxyUse, ...],
    settings: Mapping[str, int | str],
) -> LogReceipt:
    """Log the tuning, unless an expert went out of force while it ran."""
    with coordinator.ledger.exclusive() as session:
        operator = coordinator.keys.signing("operator")
        if session.state is None:
            raise NotFoundError("The log is empty.")
        _check_in_force(session.state, base, session.time)
        fields = {
            "schema": "elmgrove.router-tuned/v1",
            "consortium": coordinator.consortium,
            "created": format_time(session.time),
            "manifest": manifest,
            "base": model.digest,
            "proxies": proxies,
            "settings": dict(settings),
            "log_size": session.state.size,
        }
        envelope = sign_statement(RouterTuned.model_validate(fields), operator.key, operator.certificate)
        return session.append("router-tuned", f"model/{manifest[:16]}", envelope, ())
