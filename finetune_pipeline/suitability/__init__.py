"""Stage 3: whether fine-tuning suits the task, with which method, and at what cost."""
