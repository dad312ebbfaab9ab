"""Rules that choose how, or by which model, a text is written."""
