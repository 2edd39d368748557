"""One file a scorer, found by the package: `rtdmd.rewards.registration` says what a file holds, docs/rewards.md how to
add one."""
