"""Recipes that make the small weights which some methods need. Each writes an artifact with a card of its own."""
