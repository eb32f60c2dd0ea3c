"""The owner's two private keys; no other room opens a key file."""
