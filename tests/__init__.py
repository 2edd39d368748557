"""Tests mirror the package; `tests.tiny` makes tiny random models of the real classes for all of them."""
