"""The stock OMS tool, model-signing, as an oracle: its own command line, called in this process so that many cases stay cheap."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

__all__ = ["Verdict", "stock_verify"]


@dataclass(frozen=True)
class Verdict:
    """What ``model_signing verify certificate`` says."""

    accepted: bool
    text: str


def stock_verify(folder: Path, chain: Path, *options: str, signature: Path | None = None) -> Verdict:
    """Run ``model_signing verify certificate`` on a folder; skips the test where the tool is not installed."""
    pytest.importorskip("model_signing", exc_type=ImportError)
    pytest.importorskip("OpenSSL", exc_type=ImportError)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from model_signing import _cli

        arguments = ["verify", "certificate", str(folder), "--signature", str(signature or folder / "model.sig")]
        done = CliRunner().invoke(_cli.main, [*arguments, "--certificate_chain", str(chain), *options])
    text = done.output.strip().splitlines()[-1] if done.output.strip() else repr(done.exception)
    return Verdict(done.exit_code == 0 and "Verification succeeded" in text, text)
