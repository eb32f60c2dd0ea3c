"""Reading, tokenising and packing text, the same for the coordinator's public text and an owner's private text; no tensor library."""
