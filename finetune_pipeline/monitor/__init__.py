"""Stage 12: format compliance, latency and drift of the live traffic, and the alarms."""
