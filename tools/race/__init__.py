"""Our updates beside the public code's: seconds of the processor, and memory, of both on one model and batch."""
