"""Stage 5: a random sample for the experts, their verdicts, and the gate that requires 95 % right rows."""
