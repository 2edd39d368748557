"""Prompts: their sources, a file each, which the package finds, and the records that they become."""
