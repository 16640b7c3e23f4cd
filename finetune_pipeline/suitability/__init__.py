"""Stage 3: whether fine-tuning suits the task, with which method, and at what cost.

facts.py          what is known about the task and its rows
probe.py          how fast this machine is;  estimates.py: time, memory and cost of a training
rules.py          the recommendation;  report.py: the report for people
assets.py         the asset `suitability_report`
"""
