"""Statistics that several stages use: exact bounds of a proportion (proportion.py), and how shares are written."""
