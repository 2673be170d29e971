"""A cluster of several hosts on one machine, as a lab would have it: `ray up`, a submitted sweep, hosts that fail."""
