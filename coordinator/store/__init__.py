"""Operational state: a small database, and content-addressed files. Everything that matters to others is in the log instead."""
