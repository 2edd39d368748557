"""Algorithm 1: a trainer per stage (`acdmd.py`, `rtdmd.py`), loss terms, adapters on one base, the resumable loop."""
