"""Self-speculation that leaves layers out, chosen while it runs: `swift`."""
