"""The operator's side: admits owners, accepts experts, keeps the log, assembles, evaluates."""
