"""Drafts from matches that may differ in a few tokens: `approximate-match-lookup`."""
