"""Managed providers: training and answering through an API that speaks OpenAI's wire format.

connection.py     address and key from the environment, the client, and the API's errors with a hint
rows.py           training rows as the provider's JSONL, checked by its documented rules before any upload
cost.py           what a training is estimated to cost, and what it cost
state.py          ids of files and job, written before and after every call that costs something
transfer.py       upload a file and create a job once, whatever is interrupted
cancel.py         cancel the job of a canceled run
events.py         a job's events and checkpoints as log lines and history
spec.py job.py    the process that trains: `python -m finetune_pipeline.providers.job`
outcome.py        the end of a job: its error, or the files of the artifact
assets.py         the asset `adapter` when `train.provider` is declared; record.py: provider.json
api_answerer.py   answers from a chat completions API (an inference.answerer.Answerer)

The client is the package `openai`, the extra `openai`; it is imported in the functions that need it.
"""
