"""Tools for who audits a model: whether texts were among its training data, and what a token was chosen for."""
