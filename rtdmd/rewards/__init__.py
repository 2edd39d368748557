"""Scores of images given their prompts, behind one protocol: `registry.load_reward` loads what an entry of params.yaml
names, `golden.check_rewards` tries it before a run trusts it."""
