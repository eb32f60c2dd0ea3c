"""What the consortium has agreed on: a pure fold over the log's entries."""
