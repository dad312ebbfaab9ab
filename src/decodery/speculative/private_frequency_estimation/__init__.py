"""Tables of what users write, counted without seeing anybody's text, and drafts from them: `private-frequency-estimation`."""
