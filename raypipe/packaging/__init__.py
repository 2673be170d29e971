"""Bundles, submissions, and the checks that they work."""
