"""Methods that the comparison names without running: what is known of them, and why that is not enough."""

ABSENT = {
    "R_dm": "distribution matching as a reward of the policy; known from an abstract only. `rtdmd-corrected` has our"
    " own derivation of that idea (docs/verification.md), under its own name.",
    "Flash-DMD": "known from an abstract only: neither losses nor settings are public; an invented version would say"
    " nothing about it.",
}
