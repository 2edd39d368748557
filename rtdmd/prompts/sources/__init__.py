"""Where prompts come from, a file a source, which params.yaml names. docs/extending.md says how to add one."""
