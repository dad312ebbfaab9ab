"""What any model says of bytes."""
