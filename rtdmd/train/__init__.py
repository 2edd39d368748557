"""Algorithm 1: a trainer a stage (`acdmd.py`, `rtdmd.py`), loss terms, adapters on one base, and the resumable loop."""
