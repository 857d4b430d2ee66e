"""tradenb: a notebook-first research-to-production trading platform."""

import os

# OpenMP threads that wait by spinning starve each other as soon as two processes share the cores: training took five times as long.
# The library reads this once, when it is first loaded; what the user has set stands.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
