"""The consortium's state, as the fold of its log gives it; every value is frozen and names the entries it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from common.formats.fields import parse_time
from common.formats.manifest import AnchorManifest, ExpertManifest
from common.formats.statements import CertificateRecord, ModelAssembled, RouterTuned

__all__ = ["AnchorState", "ConsortiumState", "ExpertState", "ExpertStatus", "ModelState", "OwnerState", "TunedState"]

ExpertStatus = Literal["in-force", "superseded", "withdrawn", "revoked"]
"""Expiry is not among them: it follows from the time one asks about, see :meth:`ExpertState.in_force_at`."""


@dataclass(frozen=True, slots=True)
class OwnerState:
    """An admitted owner and the certificates the consortium issued to it."""

    name: str
    uri: str
    certificates: tuple[CertificateRecord, ...]
    admitted_index: int
    revoked_index: int | None = None
    witness_key: str | None = None
    """Verifier key of its client's cosignatures, by its newest registration."""


@dataclass(frozen=True, slots=True)
class AnchorState:
    """A published anchor. ``digest`` is its manifest's, ``document`` its signature's."""

    digest: str
    name: str
    manifest: AnchorManifest
    document: str
    index: int
    published_at: datetime


@dataclass(frozen=True, slots=True)
class ExpertState:
    """One version of an expert. ``digest`` is its manifest's, ``document`` its signature's."""

    name: str
    version: int
    owner: str
    digest: str
    manifest: ExpertManifest
    document: str
    index: int
    accepted_at: datetime
    first_index: int
    """Entry of the expert's first version; experts fill the slots of a model in this order."""
    status: ExpertStatus = "in-force"
    ended_index: int | None = None
    """Entry that ended it: supersession, withdrawal or revocation."""

    def in_force_at(self, moment: datetime) -> bool:
        """Whether it may take part in an assembly at ``moment``, by everything logged so far."""
        limit = self.manifest.not_after
        return self.status == "in-force" and (limit is None or moment <= parse_time(limit))


@dataclass(frozen=True, slots=True)
class ModelState:
    """An assembled model. ``digest`` is its manifest's."""

    digest: str
    statement: ModelAssembled
    index: int
    assembled_at: datetime


@dataclass(frozen=True, slots=True)
class TunedState:
    """A model whose router rows were tuned. ``digest`` is its manifest's, ``base`` the assembled model it was made from."""

    digest: str
    base: ModelState
    statement: RouterTuned
    index: int
    tuned_at: datetime


@dataclass(frozen=True, slots=True)
class ConsortiumState:
    """Everything the first ``size`` entries say."""

    consortium: str
    log_key: str
    size: int
    time: datetime
    """Time of the last entry."""
    certificates: tuple[CertificateRecord, ...]
    """The operator's and server's."""
    owners: Mapping[str, OwnerState]
    """By name."""
    anchors: Mapping[str, AnchorState]
    """By digest, in log order."""
    experts: Mapping[str, tuple[ExpertState, ...]]
    """By name: every version, oldest first."""
    models: tuple[ModelState, ...]
    tuned: tuple[TunedState, ...]
    documents: Mapping[str, int]
    """Every document logged so far, by digest, with its entry's index; none may come twice."""

    def current_expert(self, name: str) -> ExpertState | None:
        """The newest version of an expert, in force or not; None if there never was one."""
        versions = self.experts.get(name)
        return versions[-1] if versions else None

    def experts_in_force(self, *, anchor: str | None = None, at: datetime | None = None) -> tuple[ExpertState, ...]:
        """Experts that may take part in an assembly, in slot order.

        Args:
            anchor: digest of the anchor they must be for; any by default.
            at: the moment that decides about expiry; the last entry's time by default.
        """
        moment = at or self.time
        found = [versions[-1] for versions in self.experts.values() if versions[-1].in_force_at(moment)]
        return tuple(sorted((each for each in found if anchor in {None, each.manifest.anchor}), key=lambda each: each.first_index))

    def latest_anchor(self) -> AnchorState | None:
        """The anchor published last."""
        return max(self.anchors.values(), key=lambda anchor: anchor.index, default=None)
