"""The declaration of a task: what `data/<task>/task.yaml` may say, and what it means when it says nothing.

Every setting has its type, bound, default and trade-off here and nowhere else; `docs/configuration.md` and the JSON
Schema for editors are generated from it. Models are frozen, and unknown keys are refused.

What it is not: settings of the place where the pipeline runs (ports, database, keys). Those are environment variables,
read in `store.py` and the servers, so that the same declaration works on a laptop and on a team's servers.

    task = load_task(Path("data/support_tickets"))      # DeclarationError lists every problem at once
"""

from __future__ import annotations

import difflib
import re
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from cronsim import CronSim, CronSimError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from finetune_pipeline.answer_schema import unresolved
from finetune_pipeline.errors import DeclarationError
from finetune_pipeline.task_yaml import MAX_BYTES, parse

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]
CRON_NAMES = ("@hourly", "@daily", "@weekly", "@monthly", "@yearly")
TASK_NAME = re.compile("[a-z][a-z0-9_]{0,62}")


class Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


class Source(Declared):
    """Where raw rows come from. Give one of `path` and `hub`."""

    name: str | None = Field(None, description="Short name used in ids and reports; default: the file's name.")
    path: str | None = Field(
        None, description="File, folder saved by `datasets`, or glob, relative to the task's folder, or any fsspec URL."
    )
    hub: str | None = Field(None, description="A data set on the Hub, `owner/name`.")
    revision: str | None = Field(None, description="The Hub data set's commit; needed with `hub`, so that rows stay.")
    split: str = Field("train", description="Which split of a `datasets` folder or Hub data set is read.")
    format: Literal["auto", "csv", "jsonl", "json", "parquet", "dataset"] = Field(
        "auto", description="How the file is encoded; `auto` goes by name and content."
    )
    encoding: str = Field(
        "auto", description="Of a text file, if it is not UTF-8 and guessed wrong, e.g. cp1252 or shift_jis."
    )
    rows: Literal["auto", "columns", "alpaca", "sharegpt", "messages", "preference"] = Field(
        "auto", description="How one row is laid out; `auto` goes by its keys."
    )
    input: str | None = Field(None, description="Column that holds the question (rows: columns).")
    output: str | None = Field(None, description="Column that holds the answer (rows: columns).")
    outputs: tuple[str, ...] = Field((), description="Several columns that together make a JSON answer, in this order.")
    group: str | None = Field(
        None,
        description="Column that names what belongs together (a customer, a thread): never split across train/test. "
        "Compared without regard to case and spacing; only a hash of it is kept.",
    )
    max_unreadable: Share = Field(
        0.5,
        description="Share of this source's rows that may be unreadable; if more are, the source is broken, and the "
        "quality gate fails however good the other rows are. 1 for a source that is known to be broken.",
    )
    licence: str | None = Field(None, description="Licence of the data, carried into the model card.")

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        if self.encoding != "auto":
            try:
                b"".decode(self.encoding)  # not every codec is one of text: rot13, base64
            except (LookupError, UnicodeError):
                raise ValueError(f"`encoding: {self.encoding}` is unknown; usual: utf-8, cp1252, shift_jis") from None
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of `path` (a file) and `hub` (a data set on the Hub)")
        if self.hub and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError("a Hub data set needs `revision`, a full commit hash: without it the rows may change")
        return self

    @property
    def label(self) -> str:
        return self.name or Path(self.path or self.hub or "").stem


class Prompt(Declared):
    system: str = Field("", description="System prompt put before every example, in training and in serving alike.")


class AnswerFormat(Declared):
    """What a good answer looks like. It is checked when cleaning, when scoring and when serving."""

    format: Literal["json", "label", "text"] = Field(
        "text", description="json: an object; label: one of `labels`; text."
    )
    json_schema: dict[str, Any] | None = Field(
        None, alias="schema", description="JSON Schema of the answer (format: json)."
    )
    labels: tuple[str, ...] = Field((), description="The allowed answers (format: label).")
    slice_by: str | None = Field(
        None,
        description="JSON field whose value names the slice of a row in reports and gates; labels slice themselves.",
    )

    @model_validator(mode="after")
    def _complete(self) -> AnswerFormat:
        if self.format == "json" and self.json_schema is None:
            raise ValueError("format json needs `schema`, the JSON Schema of an answer")
        if self.format == "label" and len(self.labels) < 2:
            raise ValueError("format label needs `labels`, two or more")
        if self.json_schema is not None:
            from jsonschema import Draft202012Validator, SchemaError

            try:
                Draft202012Validator.check_schema(self.json_schema)
            except SchemaError as error:
                raise ValueError(f"`schema` is no valid JSON Schema: {error.message}") from error
            except RecursionError:
                raise ValueError("`schema` is nested too deep: put its parts under `$defs`") from None
            foreign = unresolved(self.json_schema)
            if foreign:
                raise ValueError(
                    f"`schema` refers to {', '.join(foreign)}, which is no schema within it, and nothing is fetched: "
                    "put what is meant under `$defs`, and refer to it by `#/$defs/<name>`"
                )
        return self


class Base(Declared):
    """The base model. Give exactly one of `gguf`, `path` and `hub`."""

    gguf: str | None = Field(None, description="A GGUF file: a path, or `package:<module>/<file>` inside a package.")
    path: str | None = Field(None, description="A local folder with safetensors weights and a tokenizer.")
    hub: str | None = Field(None, description="A model on the Hub, `owner/name`; needs `revision`.")
    revision: str | None = Field(None, description="Full commit hash of the Hub model: names move, commits do not.")
    licence: str = Field(description="SPDX id of the weights' licence, e.g. apache-2.0; checked against `use`.")
    licence_approval: str | None = Field(
        None, description="Who allowed this licence for this use, and why, where the built-in table does not know it."
    )

    @model_validator(mode="after")
    def _pinned(self) -> Base:
        given = [name for name in ("gguf", "path", "hub") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of `gguf`, `path` and `hub`, not {given or 'none'}")
        if self.hub and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError(
                f"`hub: {self.hub}` needs `revision`, a full commit hash (40 hexadecimal digits): what a name "
                "points to can change, and then nothing you measured holds; the hash stands on the model's page "
                "under Files, History"
            )
        return self


class Clean(Declared):
    min_tokens: Count = Field(1, description="Fewer tokens in question or answer drop the row.")
    max_tokens: int = Field(
        512, ge=8, description="Longer rows (system prompt, question, answer) are dropped, not cut."
    )
    html: bool = Field(True, description="Strip HTML remnants and entities from questions.")
    near_duplicate: Share = Field(
        0.8,
        gt=0,
        description="Jaccard similarity of 5-grams from which two questions are near duplicates; 1: only exact. What "
        "many questions share, such as an instruction, does not count.",
    )
    contradictions: Literal["drop", "keep"] = Field(
        "drop",
        description="Rows with the identical question and different answers: drop all of them, since nobody knows who "
        "is right. Questions that differ in case or punctuation are kept, and shown to the reviewers. Answers of "
        "format text are always kept: one question may have several.",
    )
    personal_data: Literal["mask", "drop", "keep"] = Field(
        "mask", description="E-mail, phone, card, IBAN, IP: replaced by <EMAIL> and so on, or the row dropped."
    )


class Suitability(Declared):
    """What you know about the job; `suitability_report` weighs it."""

    error_below: Count = Field(200, description="Fewer usable examples stop the run.")
    warn_below: Count = Field(500, description="Fewer usable examples are a warning.")
    override: str | None = Field(
        None, description="Reason to go on in spite of an ERROR; kept with every later artifact."
    )
    knowledge_changes: Literal["never", "yearly", "monthly", "weekly", "daily"] = Field(
        "yearly", description="How often the facts in the answers change; often means retrieval, not weights."
    )
    needs_sources: bool = Field(
        False, description="Must an answer quote where it comes from? Then retrieval is needed."
    )
    requests_per_day: int = Field(1000, ge=0, description="Expected load, for cost and break-even.")
    prompted_price: float = Field(
        0.60, ge=0, description="Price of a million tokens of the model you would prompt instead."
    )
    hosting_per_month: float = Field(
        30.0, ge=0, description="What the machine that serves the tuned model costs a month."
    )
    training_per_hour: float = Field(1.0, ge=0, description="What the machine that trains costs an hour.")
    currency: str = Field("USD", description="Of the three prices above.")


class Quality(Declared):
    mostly: Share = Field(0.95, gt=0, description="Share of rows that have to be right in every respect.")
    min_rows: int = Field(200, ge=1, description="Fewer cleaned rows fail the gate.")
    max_question_chars: int = Field(8000, ge=1, description="Questions have to be at most this long.")
    max_answer_chars: int = Field(8000, ge=1, description="Answers have to be at most this long.")
    max_dropped: Share = Field(
        0.5,
        description="If reading and cleaning dropped a larger share of all rows than this, the data is broken, "
        "whatever is left.",
    )


class ReviewRules(Declared):
    fraction: Share = Field(
        0.10, gt=0, description="Share of the cleaned rows that nobody has reviewed yet that a round draws."
    )
    min_rows: int = Field(20, ge=1, description="At least this many rows, however small the share.")
    max_rows: int = Field(500, ge=1, description="At most this many rows, however large the data.")
    threshold: Share = Field(0.95, description="Share of reviewed rows that must be right as they are.")
    confidence: Share = Field(
        0.95,
        gt=0.5,
        lt=1,
        description="Confidence of the exact binomial bound that is shown, over all rounds of the review together.",
    )
    require_bound: bool = Field(
        False,
        description="True: the lower bound itself, not only the observed share, has to reach the threshold; a round "
        "then has at least as many rows as can show it.",
    )
    max_flagged: Count = Field(
        10, description="Pairs of nearly equal questions with other answers shown besides the sample; not in its share."
    )
    reviewers: int = Field(1, ge=1, le=5, description="Experts per row; with two or more their agreement is measured.")
    seed: int = Field(7, description="Of the sample.")
    recorded: str | None = Field(
        None, description="File of verdicts given elsewhere, relative to the task's folder; used where content matches."
    )


class Split(Declared):
    test: Share = Field(
        0.15, gt=0, lt=0.5, description="Share of the rows kept for the decision; more shows smaller gains."
    )
    validation: Share = Field(0.08, gt=0, lt=0.5, description="Share kept to watch the training.")
    near_duplicate: Share = Field(
        0.6,
        gt=0,
        description="Similarity (as in `clean.near_duplicate`) from which rows must fall on the same side.",
    )
    seed: int = Field(11, description="Of the hash that assigns groups to sides.")

    @model_validator(mode="after")
    def _leaves_rows(self) -> Split:
        if self.test + self.validation >= 0.8:
            raise ValueError("`test` and `validation` leave less than 20 % of the rows for training")
        return self


class Baseline(Declared):
    """What a prompt alone can do; the tuned model has to beat the best of these."""

    variants: tuple[Literal["zero_shot", "few_shot", "retrieved", "classical"], ...] = Field(
        ("zero_shot", "few_shot", "retrieved", "classical"),
        description="classical: TF-IDF and logistic regression, for labels and JSON fields with few values.",
    )
    shots: int = Field(4, ge=1, le=32, description="Examples in the few-shot prompts.")


class KeepGeneral(Declared):
    """General texts in every training step, on which the tuned model is held to its base model."""

    weight: float = Field(
        0.2, ge=0, description="Of the divergence from the base model on these texts, beside the task's loss; 0: off."
    )
    texts: int = Field(
        1, ge=1, le=64, description="General texts in a step; more keeps more general ability, and takes more time."
    )


class Train(Declared):
    method: Literal["lora"] = Field("lora", description="How the weights are tuned.")
    rank: int = Field(16, ge=1, le=512, description="Rank of the adapter: more can learn more, and overfit more.")
    alpha: int = Field(32, ge=1, description="Scale of the adapter, usually twice the rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    layers: int | None = Field(
        None, ge=1, description="Tune only this many upper layers: faster, since those below are computed once per row."
    )
    epochs: float = Field(2.0, gt=0, le=50, description="Passes over the training rows.")
    learning_rate: float = Field(2e-4, gt=0, le=1, description="Peak; small models take more (1e-3), large ones less.")
    warmup: Share = Field(0.05, description="Share of the steps in which the rate rises; then it falls as a cosine.")
    weight_decay: float = Field(0.0, ge=0, description="Of AdamW.")
    clip: float = Field(1.0, gt=0, description="Largest gradient norm.")
    batch_rows: int = Field(16, ge=1, description="Rows in one optimiser step.")
    max_tokens_per_batch: int = Field(
        4096, ge=64, description="Rows of a step are computed in pieces of this many tokens."
    )
    keep_general: KeepGeneral = KeepGeneral()
    checkpoint_seconds: float = Field(30.0, ge=0, description="Time between checkpoints; 0: every step.")
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: bf16 where the processor has it.")
    threads: int | None = Field(None, ge=1, description="Threads of the training process; default: physical cores.")
    seed: int = Field(13, description="Of initialisation and order.")
    divergence: float = Field(3.0, gt=1, description="Stop when the smoothed loss exceeds this multiple of its start.")


class Evaluate(Declared):
    max_new_tokens: int | None = Field(
        None, ge=1, description="Longest answer; default: the longest reference and 20 %."
    )
    batch_rows: int = Field(64, ge=1, description="Answers generated at the same time.")
    general: bool = Field(True, description="Measure general ability on texts that have nothing to do with the task.")
    memorisation: bool = Field(True, description="Measure whether training rows are told from test rows by their loss.")


class Release(Declared):
    """What a candidate has to show: it is better than every prompted baseline (by more than `min_gain`), and no worse
    than the classical model and the live version (by at most `non_inferiority_margin`)."""

    alpha: float = Field(0.05, gt=0, lt=0.5, description="Largest chance of promoting a model that is no better.")
    min_gain: float = Field(0.0, ge=0, lt=1, description="The interval of the gain has to lie above this.")
    non_inferiority_margin: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="How much worse than the classical model or the live version (share of test rows exactly right) "
        "the interval may still allow the candidate to be. A smaller margin needs more test rows: with 200 of them, an "
        "equally good candidate passes 5 points in 48 to 68 % of the cases, 3 points in 25 to 37 %.",
    )
    detectable_gain: float = Field(
        0.10,
        ge=0.01,
        lt=1,
        description="The smallest gain (beyond `min_gain`) that matters. With fewer test rows than it takes to show it "
        "with chance `power`, even if no row is lost, the decision is INCONCLUSIVE: 66 rows with the defaults.",
    )
    power: float = Field(
        0.8, gt=0.5, lt=1, description="Chance with which a true gain of `detectable_gain` should be shown."
    )
    general_margin: float = Field(
        0.10, gt=0, description="Largest loss of general ability (relative rise of the loss on general text) accepted."
    )
    slice_margin: float = Field(0.10, gt=0, lt=1, description="A slice counts as harmed when it loses more than this.")
    min_slice_rows: int = Field(10, ge=1, description="Slices with fewer test rows are shown but decide nothing.")
    min_schema: Share = Field(0.95, description="Share of the tuned model's answers that have to be valid.")


class Serve(Declared):
    alias: str | None = Field(None, description="Model name in the endpoint; default: the task's name.")
    on_invalid: Literal["pass", "retry", "base", "reject"] = Field(
        "pass",
        description="What to do with an answer that breaks the format: pass it on marked, retry once, ask base, 422.",
    )
    parity: Share = Field(
        0.97, description="Share of the replayed test rows whose served answer must equal the evaluated."
    )
    parity_rows: int = Field(200, ge=1, description="At most this many test rows are replayed through the endpoint.")
    log_text: bool = Field(True, description="Keep questions and answers (masked) in the traffic log, or only figures.")


class Monitor(Declared):
    window_days: int = Field(7, ge=1, description="Days of traffic that a report covers.")
    min_requests: int = Field(50, ge=1, description="With fewer requests no alarm is raised.")
    max_invalid: Share = Field(
        0.05, description="Share of answers that break the format from which an alarm is raised."
    )
    max_psi: float = Field(
        0.2, gt=0, description="Population stability index of inputs and answers that raises an alarm."
    )
    max_p95_seconds: float = Field(10.0, gt=0, description="95th percentile of the latency that raises an alarm.")


class Automation(Declared):
    schedule: str = Field(
        "0 6 * * 1",
        description="Cron line of the regular retraining, in UTC: minute, hour, day of the month, month, day of the "
        "week; or @daily, @weekly, @monthly. Off until switched on.",
    )
    cooldown_hours: float = Field(24.0, ge=0, description="Least time between two retrainings started by alarms.")

    @field_validator("schedule")
    @classmethod
    def _is_cron(cls, line: str) -> str:
        """A line that Dagster takes; a wrong one would stop every task of the deployment from loading."""
        if line in CRON_NAMES:
            return line
        if len(line.split()) != 5:
            raise ValueError(f"a cron line has five fields, as in `0 6 * * 1`; or use one of {', '.join(CRON_NAMES)}")
        try:
            CronSim(line, datetime.min)
        except CronSimError as error:
            raise ValueError(f"{error}: no such time; Mondays at six are `0 6 * * 1`") from None
        return line


class Task(Declared):
    """A task: one model's job, its data, and what has to be true before the model is used."""

    name: str = Field(
        description="Lower-case letters, digits and _: key prefix in Dagster, model name in the endpoint."
    )
    description: str = Field("", description="One sentence, shown wherever the task is listed.")
    use: Literal["research", "internal", "commercial"] = Field(
        "internal", description="What the model is for; the licences of base model and data have to allow it."
    )
    prompt: Prompt = Prompt()
    answer: AnswerFormat = AnswerFormat()
    sources: tuple[Source, ...] = Field(min_length=1, description="Where raw rows come from, in this order.")
    base: Base
    clean: Clean = Clean()
    suitability: Suitability = Suitability()
    quality: Quality = Quality()
    review: ReviewRules = ReviewRules()
    split: Split = Split()
    baseline: Baseline = Baseline()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    release: Release = Release()
    serve: Serve = Serve()
    monitor: Monitor = Monitor()
    automation: Automation = Automation()

    @field_validator("sources")
    @classmethod
    def _told_apart(cls, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        labels = [source.label for source in sources]
        for label in dict.fromkeys(labels):
            places = [str(place) for place, other in enumerate(labels) if other == label]
            if len(places) > 1:
                raise ValueError(
                    f"sources {' and '.join(places)} have the same name {label!r}: give each a `name` of its own, "
                    "so that ids and reports tell them apart"
                )
        return sources

    @field_validator("name")
    @classmethod
    def _named(cls, name: str) -> str:
        if not TASK_NAME.fullmatch(name):
            raise ValueError("may hold lower-case letters, digits and _, beginning with a letter")
        return name

    @property
    def served_as(self) -> str:
        return self.serve.alias or self.name


def task_from(raw: Any, where: str) -> Task:
    """Check a parsed declaration. DeclarationError holds every problem: key, value, cure."""
    if not isinstance(raw, dict):
        raise DeclarationError(f"{where} holds no mapping of keys", "begin with `name:`, or run `finetune init`")
    try:
        return Task.model_validate(raw)
    except ValidationError as error:
        problems = tuple(_problem(e) for e in error.errors() if not _follows(e))
        count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise DeclarationError(f"{where} has {count}", problems=problems) from None


def load_task(folder: Path) -> Task:
    """Read `folder`/task.yaml. DeclarationError when it is missing, no YAML, or wrong in any key."""
    path = folder / "task.yaml"
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise DeclarationError(
            f"{path} does not exist", "run `finetune init` to make a task, or check the name, and where a link leads"
        ) from None
    except OSError as error:
        raise DeclarationError(
            f"{path} cannot be read: {error.strerror}", "check its rights; it has to be a file"
        ) from None
    task = task_from(parse(raw, str(path)), str(path))
    if task.name != folder.name:
        raise DeclarationError(
            f"{path} declares `name: {task.name}`, but its folder is {folder.name}", "give both the same name"
        )
    return task


def _follows(error: Any) -> bool:
    """A list that is too short only because its items are wrong, which is said of each of them."""
    return error["type"] == "too_short" and bool(len(error["input"]) >= error["ctx"]["min_length"])


def _problem(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "(whole file)"
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key. {_nearest(error['loc'])}"
    if error["type"] == "missing":
        return f"{key}: missing; see docs/configuration.md for what it means"
    message = error["msg"].removeprefix("Value error, ")
    shown = repr(error["input"])
    value = "" if isinstance(error["input"], dict) or len(shown) > 80 else f" (it is {shown})"
    return f"{key}: {message}{value}"


def _nearest(loc: tuple[Any, ...]) -> str:
    """Suggest the key that was meant, among those of the model that holds it."""
    model: Any = Task
    for part in loc[:-1]:
        if isinstance(part, str) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            model = next(
                (a for a in (annotation, *getattr(annotation, "__args__", ())) if hasattr(a, "model_fields")), model
            )
    names = [f.alias or n for n, f in model.model_fields.items()]
    close = difflib.get_close_matches(str(loc[-1]), names, n=1)
    return f"Did you mean `{close[0]}`?" if close else f"Known here: {', '.join(names)}"
