"""Recordings of EEG: BIDS folders, the tables beside the files, and the samples in them."""
