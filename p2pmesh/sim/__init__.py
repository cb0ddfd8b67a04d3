"""The world in a box: a whole mesh in one process and in virtual time, deterministic by seed."""
