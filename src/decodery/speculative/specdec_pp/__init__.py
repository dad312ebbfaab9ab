"""SpecDec++: a trained head tells how far to draft."""
