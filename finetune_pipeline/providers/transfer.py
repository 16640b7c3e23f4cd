"""Upload a file once and create a job once, however often the connection breaks or the process is killed.

    file_id = uploaded(client, where, prepared, "parcels-train-9f1c20e4a7b35d68.jsonl", known_id, report)
    job = created(client, where, request, state, report)

The API has no idempotency keys for files and jobs. So each call is preceded by a search for its result: a file of the
same name (which holds the hash of its content) and size, a job with the same label in its metadata, or (where a server
keeps no metadata) of the same training file and model since this training began. The client's own retries are off for
these two calls, because a request whose answer was lost may have succeeded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from finetune_pipeline.errors import ServingError, TrainingFailed
from finetune_pipeline.providers.connection import Connection, api_call, message_of, translated
from finetune_pipeline.providers.rows import Prepared
from finetune_pipeline.providers.state import ProviderState
from finetune_pipeline.records import Reporter

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import FileObject
    from openai.types.fine_tuning import FineTuningJob

T = TypeVar("T")
LABEL = "finetune_pipeline"  # the key in a job's metadata
ATTEMPTS = 5
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds, doubled after every attempt
SKEW_SECONDS = 60  # between this machine's clock and the provider's
ENDED_WITHOUT_MODEL = ("failed", "cancelled")
NOT_READY = ("pending", "running")  # Azure's states of a file that is not processed yet
UPLOAD_SECONDS = 3600.0
OUTAGE_SECONDS = 600.0  # without an answer of the provider, until following its job ends as an error


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A job to create. `label` identifies this training; `arguments` are those of `fine_tuning.jobs.create`."""

    label: str
    arguments: dict[str, Any]


def uploaded(
    client: OpenAI, where: Connection, prepared: Prepared, name: str, known: str | None, report: Reporter
) -> str:
    """The id of the file at the provider, uploaded if it is not there. TrainingFailed when the provider refuses it."""

    def find() -> FileObject | None:
        return (known and _known_file(client, known)) or _file_like(client, name, prepared.size)

    def upload() -> FileObject:
        report.log(f"uploading {prepared.path.name}: {len(prepared.ids)} rows, {prepared.size / 1e6:.1f} MB")
        with prepared.path.open("rb") as content:
            return client.with_options(max_retries=0).files.create(
                file=(name, content, "application/jsonl"), purpose="fine-tune", timeout=UPLOAD_SECONDS
            )

    file = once(find, upload, f"upload {prepared.path.name}", where, report)
    return _ready(client, where, file, prepared, report).id


def created(
    client: OpenAI, where: Connection, request: JobRequest, state: ProviderState, report: Reporter
) -> FineTuningJob:
    """The job of this training, created if there is none that runs or has succeeded."""

    def find() -> FineTuningJob | None:
        if state.job:
            job = _known_job(client, where, state.job, state)
            if job.status not in ENDED_WITHOUT_MODEL:
                return job
            report.log(f"job {job.id} of an earlier run {_ended(job.status)}; a new job is created")
            state.job = None
        return next((job for job in client.fine_tuning.jobs.list(limit=100) if _is_ours(job, request, state)), None)

    def create() -> FineTuningJob:
        return client.with_options(max_retries=0).fine_tuning.jobs.create(
            **request.arguments, metadata={LABEL: request.label}
        )

    return once(find, create, f"create the job for {request.arguments['model']}", where, report)


def once(find: Callable[[], T | None], make: Callable[[], T], action: str, where: Connection, report: Reporter) -> T:
    """What `find` finds, else what `make` makes. After a lost connection or an error of the server it looks again
    before it makes it again, ATTEMPTS times with growing pauses. The errors of `connection.translated`."""
    import openai

    wait = FIRST_WAIT
    for attempt in range(1, ATTEMPTS + 1):
        report.alive()
        with api_call(f"look for the result of an earlier attempt to {action}", where):
            found = find()
        if found is not None:
            return found
        try:
            return make()
        except openai.OpenAIError as error:
            failure = translated(error, action, where)
            if attempt == ATTEMPTS or not _is_passing(error):
                raise failure from None
            report.log(f"{failure.message}; trying again in {wait:.0f} s (attempt {attempt} of {ATTEMPTS})")
        pause(wait, report)
        wait = min(2 * wait, LONGEST_WAIT)
    raise AssertionError("the last attempt returns or raises")


def patiently(request: Callable[[], T], action: str, where: Connection, seconds: float, report: Reporter) -> T:
    """The result of a request that changes nothing, made again every `seconds` while it fails with an error that may
    pass: the job at the provider goes on. The errors of `connection.translated`: the others at once, these after
    OUTAGE_SECONDS; and JobCanceled."""
    import openai

    began: float | None = None
    while True:
        try:
            found = request()
        except openai.OpenAIError as error:
            failure, now = translated(error, action, where), time.monotonic()
            lasts = 0.0 if began is None else now - began
            if not _is_passing(error) or lasts >= OUTAGE_SECONDS:
                raise failure from None
            if began is None:
                began = now
                report.log(f"{failure.message}; trying again for up to {OUTAGE_SECONDS / 60:.0f} minutes")
        else:
            if began is not None:
                report.log(f"{where.url} answers again")
            return found
        pause(seconds, report)


def pause(seconds: float, report: Reporter) -> None:
    """Wait; `report` may cancel it within half a second."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        report.alive()
        time.sleep(min(0.5, left))


def _is_passing(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    import openai

    if isinstance(error, openai.APIConnectionError):
        return True
    status = getattr(error, "status_code", 0)
    limited = status in (408, 409, 429) and getattr(error, "code", None) != "insufficient_quota"
    return limited or status >= 500


def _known_job(client: OpenAI, where: Connection, id_: str, state: ProviderState) -> FineTuningJob:
    """The job that an earlier run created. ServingError where this key does not see it: another one would be paid for
    as well."""
    import openai

    try:
        return client.fine_tuning.jobs.retrieve(id_)
    except openai.NotFoundError as error:
        raise ServingError(
            f"{where.url} could not find job {id_}, which is in {state.path}: {where.hide(message_of(error))}",
            f"set {where.key_variable} to a key of the project (and `base_url` to the address) where this job was "
            f"created; or, to train again there, delete {state.path}",
        ) from None


def _known_file(client: OpenAI, id_: str) -> FileObject | None:
    """The file, unless it was deleted at the provider since, or refused."""
    import openai

    try:
        file = client.files.retrieve(id_)
    except openai.NotFoundError:
        return None
    return None if file.status == "error" else file


def _file_like(client: OpenAI, name: str, size: int) -> FileObject | None:
    files = (file for file in client.files.list(purpose="fine-tune") if file.filename == name)
    return next((file for file in files if file.bytes == size and file.status != "error"), None)


def _ready(client: OpenAI, where: Connection, file: FileObject, prepared: Prepared, report: Reporter) -> FileObject:
    """Wait until the provider has read the file; OpenAI's are usable at once."""
    while str(file.status) in NOT_READY:
        pause(FIRST_WAIT, report)
        with api_call(f"look at the file {prepared.path.name}", where):
            file = client.files.retrieve(file.id)
    if file.status == "error":
        raise TrainingFailed(
            f"the provider refused {prepared.path.name}: {file.status_details or 'no reason given'}",
            "correct the rows that it names, and run again; nothing was trained",
        )
    return file


def _is_ours(job: FineTuningJob, request: JobRequest, state: ProviderState) -> bool:
    if job.status in ENDED_WITHOUT_MODEL:
        return False
    if job.metadata:
        return job.metadata.get(LABEL) == request.label
    same = (job.training_file, job.model) == (request.arguments["training_file"], request.arguments["model"])
    return same and job.created_at >= state.started - SKEW_SECONDS


def _ended(status: str) -> str:
    return "was canceled" if status == "cancelled" else status
