"""One module per stage of dvc.yaml, each with `run(root)`."""
