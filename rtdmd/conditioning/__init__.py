"""The teacher's text conditioning of prompts, kept so that no stage computes it twice."""
