"""What an output must be: a JSON document, a match of a regular expression, a sentence of a grammar, one of some texts."""
