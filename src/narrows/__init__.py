"""Narrows: autoencoders for large, messy data."""
