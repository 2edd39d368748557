"""What the fuzzers share: how many rounds they go, few in the suite and as many as you like by hand.

FUZZ_ROUNDS=5000 FUZZ_SEED=1 pytest -n0 tests -k fuzz
"""

from __future__ import annotations

import os
import random


def rounds(few: int) -> int:
    """FUZZ_ROUNDS, or ``few`` where it is not set."""
    return int(os.environ.get("FUZZ_ROUNDS", few))


def dice(name: str) -> random.Random:
    """The random numbers of the fuzzer ``name``, the same at every run with the same FUZZ_SEED."""
    return random.Random(f"{name} {os.environ.get('FUZZ_SEED', 0)}")
