"""Models from outside: where they are computed, and in which precision."""
