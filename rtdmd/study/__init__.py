"""The comparison: many methods on several seeds with an equal budget, gathered into one table and one page."""
