"""Training: losses, batches, and the loop that can stop and go on."""
