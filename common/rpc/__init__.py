"""The wire: generated messages, TLS channels, retries, and the table of errors."""
