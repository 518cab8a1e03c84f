"""Training: one state and step, one stage per network, one loop."""
