"""Self-audit and privacy accounting of an expert before it is offered; reaches neither keys nor the network."""
