"""The workflow's side of a stage: dvc.yaml, the stage harness, both engines, DVC's cache, lineage and provenance."""
