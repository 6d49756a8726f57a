"""What the whole suite needs before anything is imported."""

from __future__ import annotations

import os

# OpenMP's threads spin while they wait for each other. On cores that others use too, that made a training step
# 20 to 40 times slower than letting them sleep (measured). Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
