"""What several stages say with figures: exact bounds of a share (proportion.py), and how shares are written."""
