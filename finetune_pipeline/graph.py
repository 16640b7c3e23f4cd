"""The graph as a table: each asset, its inputs, and the verdicts that it requires. Data only; nothing runs here.

    BY_NAME["data_split"].needs      # ("raw_examples", "clean_examples", "expert_review")
    downstream("adapter")            # ["adapter", "eval_report", "release_decision", ...]

`defs/` turns the rows into Dagster assets, `materialize.py` makes one of them, `cli/status.py` shows their state. An
artifact is a folder `<task>/<stage>/<asset>/<key>/` (see `store/`).
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_pipeline.store import STAGE_OF


@dataclass(frozen=True, slots=True)
class Step:
    """One asset.

    make: function that makes it, as "module:function"
    needs: assets whose files it reads
    after: assets that are made before it without being read (a report before the GPU is paid for); they never make it
        stale
    gates: pairs (gate asset, checked asset); GateRefused unless the gate passed for exactly that content
    config_sections: sections of the declaration that change its result
    version: raised when the code returns another result for the same inputs
    fingerprint: function that returns a hash or a small value of what the step reads beyond its inputs; part of the
        key, and passed on as `StageContext.fingerprint`
    check, blocking: name of its asset check in Dagster, and whether a failure stops the run
    kinds, description: shown in Dagster's UI
    """

    asset: str
    make: str
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    gates: tuple[tuple[str, str], ...] = ()
    config_sections: tuple[str, ...] = ()
    version: str = "1"
    fingerprint: str | None = None
    check: str | None = None
    blocking: bool = True
    kinds: tuple[str, ...] = ()
    description: str = ""

    @property
    def stage(self) -> str:
        """The package that makes it, and the folder that it lies in (store/paths.py)."""
        return STAGE_OF[self.asset]


_P = "finetune_pipeline"

STEPS: tuple[Step, ...] = (
    Step(
        "base_model",
        make=f"{_P}.models.base_model:base_model",
        fingerprint=f"{_P}.models.model_source:source_fingerprint",
        config_sections=("base", "use"),
        kinds=("huggingface",),
        description="The base model: pinned, license checked, as a local folder of safetensors.",
    ),
    Step(
        "raw_examples",
        make=f"{_P}.ingest.assets:raw_examples",
        fingerprint=f"{_P}.ingest.assets:sources_fingerprint",
        config_sections=("sources", "answer"),
        version="4",
        check="every_row_accounted",
        kinds=("jsonl",),
        description="Rows of every declared source, each with a stable id and its origin.",
    ),
    Step(
        "clean_examples",
        make=f"{_P}.clean.assets:clean_examples",
        needs=("raw_examples", "base_model"),
        config_sections=("clean", "answer", "prompt"),
        version="6",
        check="ledger_reconciles",
        kinds=("jsonl",),
        description="Cleaned JSONL, and the ledger of what was fixed and what was dropped, and why.",
    ),
    Step(
        "suitability_report",
        make=f"{_P}.suitability.assets:suitability_report",
        needs=("raw_examples", "clean_examples", "base_model"),
        config_sections=("suitability", "answer", "prompt", "train", "split", "use"),
        version="3",
        check="worth_tuning",
        kinds=("report",),
        description="Whether prompting, retrieval, fine-tuning or both fit the task; with what method, at what cost.",
    ),
    Step(
        "data_quality",
        make=f"{_P}.quality.assets:data_quality",
        needs=("raw_examples", "clean_examples"),
        gates=(("suitability_report", "clean_examples"),),
        config_sections=("quality", "answer", "clean", "sources"),
        version="4",
        check="quality_gate",
        kinds=("greatexpectations",),
        description="Great Expectations on the cleaned rows: the declared share has to be right in every respect.",
    ),
    Step(
        "review_sample",
        make=f"{_P}.review.assets:review_sample",
        fingerprint=f"{_P}.review.history:ended_fingerprint",
        needs=("clean_examples",),
        gates=(("data_quality", "clean_examples"),),
        config_sections=("review",),
        version="4",
        kinds=("jsonl",),
        description="A random sample of the cleaned rows for review in the desk.",
    ),
    Step(
        "expert_review",
        make=f"{_P}.review.assets:expert_review",
        fingerprint=f"{_P}.review.assets:reviews_fingerprint",
        needs=("clean_examples", "review_sample", "base_model"),
        gates=(("data_quality", "clean_examples"),),
        config_sections=("review", "answer", "clean", "quality", "prompt"),
        version="5",
        check="review_gate",
        kinds=("review",),
        description="The experts' verdicts, edits and agreement; waits for people, for days if need be.",
    ),
    Step(
        "data_split",
        make=f"{_P}.split.assets:data_split",
        needs=("raw_examples", "clean_examples", "expert_review"),
        gates=(("expert_review", "clean_examples"),),
        config_sections=("split", "answer"),
        version="5",
        check="no_overlap",
        kinds=("jsonl",),
        description="Train, validation and test: by group and near-duplicate cluster, test rows frozen.",
    ),
    Step(
        "baseline_report",
        make=f"{_P}.baseline.assets:baseline_report",
        needs=("data_split", "base_model"),
        gates=(("data_split", "expert_review"),),
        config_sections=("baseline", "evaluate", "answer", "prompt"),
        version="3",
        kinds=("report",),
        description="What prompting and a classical model reach on the test rows, before anything is trained.",
    ),
    Step(
        "adapter",
        make=f"{_P}.train.assets:adapter",
        needs=("data_split", "base_model"),
        after=("baseline_report",),
        gates=(("data_split", "expert_review"),),
        config_sections=("train", "prompt", "answer"),
        version="3",
        check="learns_and_converges",
        kinds=("pytorch", "mlflow"),
        description="The LoRA adapter: what is learned is checked before, the loss is watched during, training.",
    ),
    Step(
        "eval_report",
        make=f"{_P}.evaluate.assets:eval_report",
        fingerprint=f"{_P}.serve.assets:live_version",
        needs=("data_split", "base_model", "baseline_report", "adapter"),
        gates=(("adapter", "data_split"),),
        config_sections=("evaluate", "answer", "prompt", "suitability"),
        version="3",
        kinds=("report",),
        description="Prompts, classical model, live version and tuned model on the same test rows; general ability.",
    ),
    Step(
        "release_decision",
        make=f"{_P}.release.assets:release_decision",
        needs=("eval_report", "adapter", "data_split"),
        config_sections=("release",),
        version="5",
        check="release_gate",
        kinds=("report",),
        description="PROMOTE, REJECT or INCONCLUSIVE, with every reason.",
    ),
    Step(
        "registered_model",
        make=f"{_P}.release.assets:registered_model",
        needs=("release_decision", "eval_report", "adapter", "data_split", "base_model"),
        gates=(("release_decision", "eval_report"),),
        config_sections=("base", "use", "sources", "prompt", "description"),
        kinds=("mlflow",),
        description="A version in MLflow's registry with model card, license, lineage and checksums.",
    ),
    Step(
        "deployed_endpoint",
        make=f"{_P}.serve.assets:deployed_endpoint",
        fingerprint=f"{_P}.serve.assets:deployment_fingerprint",
        needs=("registered_model", "release_decision", "eval_report", "adapter", "data_split", "base_model"),
        gates=(("release_decision", "eval_report"),),
        config_sections=("serve", "prompt", "answer"),
        check="parity",
        kinds=("endpoint",),
        description="The version behind the endpoint, after the held-out rows were replayed through it.",
    ),
    Step(
        "traffic_report",
        make=f"{_P}.monitor.assets:traffic_report",
        fingerprint=f"{_P}.monitor.assets:traffic_fingerprint",
        needs=("deployed_endpoint", "data_split", "eval_report"),
        config_sections=("monitor", "serve", "answer"),
        version="3",
        check="no_alarm",
        blocking=False,
        kinds=("report",),
        description="Drift, format compliance, latency and fallbacks of the live traffic; alarms start retraining.",
    ),
)

BY_NAME = {step.asset: step for step in STEPS}


def downstream(asset: str) -> list[str]:
    """The asset and everything made from it, in order."""
    found = {asset}
    for step in STEPS:
        if found & {*step.needs, *step.after, *(gate for gate, _ in step.gates)}:
            found.add(step.asset)
    return [step.asset for step in STEPS if step.asset in found]
