"""Commands that are no stages, each with `run(arguments)`."""
