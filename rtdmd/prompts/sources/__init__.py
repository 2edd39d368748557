"""Where prompts come from, a file per source, which params.yaml names. docs/extending.md says how to add one."""
