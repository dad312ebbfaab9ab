"""Whose text it is: marks that are found again."""
