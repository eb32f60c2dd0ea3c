"""Keys, certificates, envelopes and OMS bundles: bytes in, a ``Verified`` value or an exception out (``docs/formats.md``, section 7)."""
