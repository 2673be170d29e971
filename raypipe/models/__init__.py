"""The networks. torch only: these files are shipped, word for word, in submissions."""
