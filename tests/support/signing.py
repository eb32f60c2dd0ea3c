"""Signing a folder as it lies on the disk, for tests: whatever is in it, whether or not Elmgrove would take it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from common.trust.oms import sign_resources

__all__ = ["sign_folder"]


def sign_folder(folder: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> bytes:
    """The bytes of ``model.sig`` over every other file of the folder."""
    paths = [path for path in folder.iterdir() if path.name != "model.sig"]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    return sign_resources(digests, folder.name, key, certificate)
