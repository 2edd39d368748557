"""The rehearsal: the whole run of a params.yaml, with stand-ins for what it would download."""

STAGES = ("train_acdmd", "train_rtdmd")
"""What trains, and is measured at the real size."""
MEASUREMENTS = ("updates", "verify", "losses", "compile")
"""What is measured there, the most important first."""
