"""A model and its data on one page."""
