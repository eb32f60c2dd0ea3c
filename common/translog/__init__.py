"""The transparency log as its readers see it: RFC 6962 hashing, C2SP tiles, notes, checkpoints and proofs. Nothing here writes a log."""
