"""Methods of any-order models: tokens are drawn one after the other or several at once, given any set of others."""
