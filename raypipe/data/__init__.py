"""Recordings to windows with targets: BIDS folders, tasks, and the store of windows."""
