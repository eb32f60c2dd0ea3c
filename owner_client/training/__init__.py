"""Training one expert against the frozen anchor; reaches neither keys nor the network."""
