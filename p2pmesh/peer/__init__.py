"""The peer: machine, model and wire."""
