"""One file per scorer, found by the package. `rtdmd.rewards.registration` says what a file holds, and docs/extending.md
how to add one."""
