"""The report: one self-contained HTML page made from the results folders, readable without the code."""
