"""Drafters that give probabilities: a model, the first layers of the target, or n-grams; and trees drawn from them."""
