"""Dagster only: shells over the library. `assets` turns the rows of graph.py into assets and checks, `automation` has
the jobs, sensors and schedules, `reporter` carries what a stage tells into Dagster's log and onto the terminal."""
