"""Stage 6: training, validation and test rows without overlap; test rows stay test rows."""
