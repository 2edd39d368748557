"""Where prompts come from, a file a source; its name in params.yaml is the file's. How to add one: docs/prompts.md."""
