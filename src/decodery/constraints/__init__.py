"""Methods that keep texts to a constraint by more than masking."""
