"""The only writer of the transparency log, and the view of its state that the coordinator works with."""
