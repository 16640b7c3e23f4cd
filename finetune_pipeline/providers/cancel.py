"""Cancel the provider's job when its run is canceled: by the run's own process, which knows that it was canceled.

    cancel_job(spec, report)      # logs what it did, or what a person has to do

The job's process may hang in a request, and is then killed; so it is not the one that cancels. A run that is killed
cancels nothing: its job goes on, and the next run finds it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_pipeline.errors import FinetuneError
from finetune_pipeline.providers.connection import api_call, connect, connection_of
from finetune_pipeline.providers.spec import ProviderSpec
from finetune_pipeline.providers.state import ProviderState
from finetune_pipeline.providers.transfer import ENDED_WITHOUT_MODEL, LABEL
from finetune_pipeline.records import Reporter

if TYPE_CHECKING:
    from openai import OpenAI

SECONDS = 10.0  # of each request: a person waits


def cancel_job(spec: ProviderSpec, report: Reporter) -> None:
    """Cancel the job of this training, also one whose id the killed process could not write down any more."""
    state = ProviderState.load(spec.folder)
    if not state.files:
        return
    job = state.job
    try:
        where = connection_of(spec.provider)
        client = connect(where, max_retries=1).with_options(timeout=SECONDS)
        with api_call("cancel the job", where):
            job = job or _job_with(client, spec.label)
            if job is None or client.fine_tuning.jobs.retrieve(job).status in (*ENDED_WITHOUT_MODEL, "succeeded"):
                return
            client.fine_tuning.jobs.cancel(job)
    except FinetuneError as error:
        report.log(f"{error.message}; cancel job {job or spec.label} at the provider: it may still train and cost")
    else:
        report.log(f"job {job} is canceled at the provider; the uploaded files are kept for the next run")


def _job_with(client: OpenAI, label: str) -> str | None:
    jobs = client.fine_tuning.jobs.list(limit=100)
    return next((job.id for job in jobs if (job.metadata or {}).get(LABEL) == label), None)
