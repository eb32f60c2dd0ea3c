"""How long to fuzz: a minute's worth by default, hours' worth with ``ELMGROVE_FUZZ=long``."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

settings.register_profile("elmgrove-short", max_examples=120, deadline=None, suppress_health_check=_QUIET)
settings.register_profile("elmgrove-long", max_examples=20_000, deadline=None, suppress_health_check=_QUIET, print_blob=True)


def fuzz_settings() -> settings:
    """The profile that the environment asks for."""
    return settings.get_profile("elmgrove-long" if os.environ.get("ELMGROVE_FUZZ") == "long" else "elmgrove-short")
