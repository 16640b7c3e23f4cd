"""Stage 9: the tuned model and the live version on the test rows that the baselines answered."""
