"""Files and folders, local or behind a URI, and the run's store in them."""
