"""The FlexOlmo model in plain PyTorch, as ``docs/`` and section 7 of the design draw it: dense anchor, expert pair, assembled mixture."""
