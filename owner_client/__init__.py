"""The data owner's side: trains on private text here, and sends only what was reviewed and signed."""
