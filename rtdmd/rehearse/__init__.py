"""The rehearsal: the whole run of a params.yaml, with stand-ins for what it would download."""
