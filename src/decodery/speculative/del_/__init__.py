"""Self-speculation from the layer where drafting pays most, chosen round by round: `del`."""
