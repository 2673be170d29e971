"""The networks. They need torch only: these files are shipped unchanged in submissions."""
