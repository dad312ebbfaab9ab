"""Early exits: when everything that is still masked may be filled at once."""
