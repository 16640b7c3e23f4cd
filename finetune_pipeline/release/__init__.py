"""Stage 10: the decision on a candidate (PROMOTE, REJECT or INCONCLUSIVE), and its version in the registry."""
