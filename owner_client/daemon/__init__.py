"""What talks to the coordinator for the owner: enrol, pull, review, push, withdraw. It reaches no torch and no private data."""
