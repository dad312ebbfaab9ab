"""Drafts from the longest match of the recent text: `suffix-automaton`."""
