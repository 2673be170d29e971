"""Reports, figures, status and comparison of runs."""
