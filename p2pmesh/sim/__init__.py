"""The world in a box: a whole mesh in one process and in virtual time, deterministic by seed."""

import os

# Before numpy is loaded: its threads spin on small matrices, and take half the machine from the simulator.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
