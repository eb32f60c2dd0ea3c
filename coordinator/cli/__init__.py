"""Command line of the operator: one module per command, heavy imports inside the command."""
