"""The embedded world: procedural coloured shapes with GenEval-like captions, an exact verifier, and a small teacher.

It stands in for photographs so that the whole pipeline, with the real model classes, runs on two CPU cores and its
result can be checked exactly. ``grammar`` says what can be asked for, ``render`` draws it, ``verifier`` reads it back,
and ``tools/world`` makes the teacher, its text encoders, its autoencoder and the CLIP reward once.
"""

IMAGE_SIZE = 36  # pixels a side
GRID = 3  # cells a side
CELL = 12  # pixels a cell side
