"""Judging models on held-out prompts: what to sample, what to measure, and how sure one can be of the figures."""
