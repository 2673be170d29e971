"""EEG with a known answer, written as BIDS recordings."""
