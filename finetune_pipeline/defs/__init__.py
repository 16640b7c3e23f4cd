"""Dagster only: definitions over the library.

`assets`, `checks`, `metadata` and `source_assets` turn the table of graph.py into assets; `automation`, `sensors` and
`run_requests` start runs; `run` is `finetune run`, `reporter` a stage's progress. `task_definitions` puts a task
together; `code_location` and `run_monitoring` are sensors of the deployment.
"""
