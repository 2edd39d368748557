"""What the two training stages stand on: roles over one base model, resumable state, and the loss terms they share."""
