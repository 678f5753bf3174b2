"""Training with Ray Train; the loop itself is plain torch."""
