"""Sections of the report: each module renders the templates of its sections to HTML."""
