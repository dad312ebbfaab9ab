"""What drives methods: jobs, the scheduler, the registry. Nothing here imports torch before work starts."""
