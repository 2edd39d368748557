"""Several processes of one stage: ranks, launch, sharding."""
