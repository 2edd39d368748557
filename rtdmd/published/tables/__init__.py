"""The published tables, one file each: `TABLE = Table(...)`."""
