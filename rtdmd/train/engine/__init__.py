"""What runs a training loop: checkpoints, journal, trackers, validation, diagnostics."""
