"""Prompts: their sources, records and text cache."""
