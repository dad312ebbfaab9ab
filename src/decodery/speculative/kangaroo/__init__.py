"""Kangaroo: the target's first layers and a small trained adapter draft; whoever is not sure stops."""
