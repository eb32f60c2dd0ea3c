"""The command line of the data owner: one module a command, heavy imports inside the command."""
