"""The graph as a table: each asset, what it is made from, and which verdicts it needs. Pure data; nothing runs here.

`defs/` turns the rows into Dagster assets, `materialise.py` makes one of them, and `cli.py` reads from it where a task
stands. What is made lies in `<task>/<folder>/<asset>/` (see `store.py`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """One asset.

    `needs`: the assets whose files it reads. `after`: assets that come first without being read (a report before money
    is spent): they order the graph and never make this one stale. `gates`: pairs (gate asset, asset it must have
    judged); the step refuses to run unless that very content passed. `declared`: the sections of the declaration that
    change its result. `version` rises when its code gives another result for the same inputs. `make` and `outside` name
    functions ("module:function"): the one that makes it, and the one that says what it reads beyond its inputs (a hash,
    or a small value); that is a part of the key, and `make` gets it as `Work.outside`.
    """

    asset: str
    folder: str
    make: str
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    gates: tuple[tuple[str, str], ...] = ()
    declared: tuple[str, ...] = ()
    version: str = "1"
    outside: str | None = None
    check: str | None = None
    blocking: bool = True
    kinds: tuple[str, ...] = ()
    description: str = ""


_P = "finetune_pipeline"

STEPS: tuple[Step, ...] = (
    Step(
        "base_model",
        "0_base",
        make=f"{_P}.base_model:base_model",
        outside=f"{_P}.base_model:source_fingerprint",
        declared=("base", "use"),
        kinds=("huggingface",),
        description="The base model: pinned, licence checked, as a local folder of safetensors.",
    ),
    Step(
        "raw_examples",
        "1_raw",
        make=f"{_P}.ingest.assets:raw_examples",
        outside=f"{_P}.ingest.assets:sources_fingerprint",
        declared=("sources", "answer"),
        version="3",
        check="every_row_accounted",
        kinds=("jsonl",),
        description="Rows of every declared source, each with a stable id and its origin.",
    ),
    Step(
        "clean_examples",
        "2_clean",
        make=f"{_P}.clean.assets:clean_examples",
        needs=("raw_examples", "base_model"),
        declared=("clean", "answer", "prompt"),
        version="5",
        check="ledger_reconciles",
        kinds=("jsonl",),
        description="Cleaned JSONL, and the ledger of what was mended and what was dropped, and why.",
    ),
    Step(
        "suitability_report",
        "1_raw",
        make=f"{_P}.advise.assets:suitability_report",
        needs=("raw_examples", "clean_examples", "base_model"),
        declared=("suitability", "answer", "prompt", "train", "split", "use"),
        version="2",
        check="worth_tuning",
        kinds=("report",),
        description="Whether this job wants prompting, retrieval, fine-tuning or both; with what method, at what cost.",
    ),
    Step(
        "data_quality",
        "3_quality",
        make=f"{_P}.gates.assets:data_quality",
        needs=("raw_examples", "clean_examples"),
        gates=(("suitability_report", "clean_examples"),),
        declared=("quality", "answer", "clean", "sources"),
        version="3",
        check="quality_gate",
        kinds=("greatexpectations",),
        description="Great Expectations on the cleaned rows: the declared share has to be right in every respect.",
    ),
    Step(
        "review_sample",
        "4_review",
        make=f"{_P}.review.assets:review_sample",
        outside=f"{_P}.review.history:ended_fingerprint",
        needs=("clean_examples",),
        gates=(("data_quality", "clean_examples"),),
        declared=("review",),
        version="3",
        kinds=("jsonl",),
        description="A random sample for the experts, waiting in the desk.",
    ),
    Step(
        "expert_review",
        "4_review",
        make=f"{_P}.review.assets:expert_review",
        outside=f"{_P}.review.assets:reviews_fingerprint",
        needs=("clean_examples", "review_sample", "base_model"),
        gates=(("data_quality", "clean_examples"),),
        declared=("review", "answer", "clean", "quality", "prompt"),
        version="4",
        check="review_gate",
        kinds=("review",),
        description="The experts' verdicts, edits and agreement; waits for people, for days if need be.",
    ),
    Step(
        "data_split",
        "5_split",
        make=f"{_P}.split.assets:data_split",
        needs=("raw_examples", "clean_examples", "expert_review"),
        gates=(("expert_review", "clean_examples"),),
        declared=("split", "answer"),
        version="4",
        check="no_overlap",
        kinds=("jsonl",),
        description="Train, validation and test: by group and near-duplicate cluster, test rows frozen.",
    ),
    Step(
        "baseline_report",
        "5_split",
        make=f"{_P}.evaluate.assets:baseline_report",
        needs=("data_split", "base_model"),
        gates=(("data_split", "expert_review"),),
        declared=("baseline", "evaluate", "answer", "prompt"),
        version="2",
        kinds=("report",),
        description="What prompting and a classical model reach on the test rows, before anything is trained.",
    ),
    Step(
        "adapter",
        "6_adapter",
        make=f"{_P}.train.assets:adapter",
        needs=("data_split", "base_model"),
        after=("baseline_report",),
        gates=(("data_split", "expert_review"),),
        declared=("train", "prompt", "answer"),
        version="3",
        check="learns_and_converges",
        kinds=("pytorch", "mlflow"),
        description="The LoRA adapter: what is learned is checked before, the loss is watched during, training.",
    ),
    Step(
        "eval_report",
        "7_eval",
        make=f"{_P}.evaluate.assets:eval_report",
        outside=f"{_P}.serve.assets:live_opponent",
        needs=("data_split", "base_model", "baseline_report", "adapter"),
        gates=(("adapter", "data_split"),),
        declared=("evaluate", "answer", "prompt", "suitability"),
        version="2",
        kinds=("report",),
        description="Prompts, classical model, live version and tuned model on the same test rows; general ability.",
    ),
    Step(
        "release_decision",
        "7_eval",
        make=f"{_P}.release.assets:release_decision",
        needs=("eval_report", "adapter", "data_split"),
        declared=("release",),
        version="4",
        check="release_gate",
        kinds=("report",),
        description="PROMOTE, REJECT or INCONCLUSIVE, with every reason.",
    ),
    Step(
        "registered_model",
        "8_model",
        make=f"{_P}.release.assets:registered_model",
        needs=("release_decision", "eval_report", "adapter", "data_split", "base_model"),
        gates=(("release_decision", "eval_report"),),
        declared=("base", "use", "sources", "prompt", "description"),
        kinds=("mlflow",),
        description="A version in MLflow's registry with model card, licence, lineage and checksums.",
    ),
    Step(
        "deployed_endpoint",
        "9_traffic",
        make=f"{_P}.serve.assets:deployed_endpoint",
        outside=f"{_P}.serve.assets:desired_fingerprint",
        needs=("registered_model", "release_decision", "eval_report", "adapter", "data_split", "base_model"),
        gates=(("release_decision", "eval_report"),),
        declared=("serve", "prompt", "answer"),
        check="parity",
        kinds=("endpoint",),
        description="The version behind the endpoint, after the held-out rows were replayed through it.",
    ),
    Step(
        "traffic_report",
        "9_traffic",
        make=f"{_P}.monitor.assets:traffic_report",
        outside=f"{_P}.monitor.assets:traffic_fingerprint",
        needs=("deployed_endpoint", "data_split", "eval_report"),
        declared=("monitor", "serve", "answer"),
        version="2",
        check="no_alarm",
        blocking=False,
        kinds=("report",),
        description="Drift, format compliance, latency and fallbacks of the live traffic; alarms start retraining.",
    ),
)

BY_NAME = {step.asset: step for step in STEPS}
FOLDERS = {step.asset: step.folder for step in STEPS}


def downstream(asset: str) -> list[str]:
    """The asset and everything made from it, in order."""
    found = {asset}
    for step in STEPS:
        if found & {*step.needs, *step.after, *(gate for gate, _ in step.gates)}:
            found.add(step.asset)
    return [step.asset for step in STEPS if step.asset in found]
