"""Drafts from several sources of likely next tokens, no network among them: `cascade`."""
