"""Learning: transitions in, policy out."""
