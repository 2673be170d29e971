"""Sweeps in which things are killed at random moments, compared to the bit with one that nothing disturbed."""
