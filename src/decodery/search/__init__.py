"""Several texts, one decision: votes, and what a text answers."""
