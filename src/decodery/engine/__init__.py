"""What drives methods: requests, the scheduler, the registry. Nothing here imports torch before work starts."""
