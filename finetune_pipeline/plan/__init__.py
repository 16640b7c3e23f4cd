"""Stage 8: what a training will need, before its first step: memory, time and cost, and which method fits.

spec.py           what the probe gets and returns: sizes of the training, seconds of a few of its steps
training_plan.py  the plan, from that;  report.py: the page for people
assets.py         the asset `training_plan`

The formulas are in models/ (architecture.py, training_memory.py, training_work.py, training_fit.py), because the
suitability report and the training itself use them as well. The probe itself is in train/probe.py: it runs the very
training.
"""
