"""Stage 7: what prompts and a classical model reach on the test rows, before anything is trained."""
