"""Tiny random models in the layouts in which the scorers' are published: real classes, published names of files and
tensors. A function writes what one source of a scorer's entry names (rtdmd/rehearse/scorers.py has the list)."""
