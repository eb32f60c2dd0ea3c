"""What all roles must agree on, byte for byte: formats, trust, the log, the ledger, weights, the wire, the model, the audit."""
