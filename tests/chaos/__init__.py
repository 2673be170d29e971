"""Sweeps that are disturbed at random moments, compared to the bit with one that nothing disturbed."""
