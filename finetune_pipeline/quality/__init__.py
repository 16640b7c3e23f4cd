"""Stage 4: checks the cleaned rows with Great Expectations; the gate requires 95 % of them to pass."""
