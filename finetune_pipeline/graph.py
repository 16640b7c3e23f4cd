"""The graph as a table: each asset, its inputs, and the verdicts that it requires. Data only; nothing runs here.

    BY_NAME["data_split"].needs      # ("raw_examples", "clean_examples", "expert_review")
    downstream("adapter")            # ["adapter", "eval_report", "release_decision", ...]

`defs/` turns the rows into Dagster assets, `materialize.py` makes one of them, `cli/status.py` shows their state. An
artifact is a folder `<task>/<stage>/<asset>/<key>/` (see `store/`). The table is long because it is the one place for
all of this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finetune_pipeline.store import STAGE_OF


@dataclass(frozen=True, slots=True)
class External:
    """What a step reads beyond its inputs: files and state that people or other processes write. In Dagster it is the
    observable source asset `<task>/<name>`. `fingerprint` names the function ("module:function") that returns its
    hash, or a small value; that is a part of the step's key, and `make` gets it as `StageContext.fingerprint`."""

    name: str
    fingerprint: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One asset.

    make: function that makes it, as "module:function"
    needs: assets whose files it reads
    after: assets that are made before it without being read (a report before the GPU is paid for); they never make it
        stale
    gates: pairs (gate asset, checked asset); GateRefused unless the gate passed for exactly that content
    external: what it reads beyond its inputs
    config_sections: sections of the declaration that change its result; a dotted name is a value within a section
    version: raised when the code returns another result for the same inputs
    check, blocking: name of its gate, an asset check in Dagster, and whether a failure stops the run
    check_names: names of the gate's single checks (`records.Check.name`) that do not depend on the data, or the
        function that returns them for a task, as "module:function"
    rows: files that hold its rows
    always_new: no two runs give the same files, because these hold times or measurements; so a change of any input
        changes this asset as well
    computes: it starts a job that leases a device (backends/devices.py); in Dagster, runs with it wait in the queue
    kinds, description: shown in Dagster's UI
    """

    asset: str
    make: str
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    gates: tuple[tuple[str, str], ...] = ()
    external: External | None = None
    config_sections: tuple[str, ...] = ()
    version: str = "1"
    check: str | None = None
    blocking: bool = True
    check_names: tuple[str, ...] | str = ()
    rows: tuple[str, ...] = ()
    always_new: bool = False
    computes: bool = False
    kinds: tuple[str, ...] = ()
    description: str = ""

    @property
    def stage(self) -> str:
        """The package that makes it, and the folder that it lies in (store/paths.py)."""
        return STAGE_OF[self.asset]

    @property
    def upstream(self) -> tuple[str, ...]:
        """Every asset that has to be there first, for whatever reason."""
        return tuple(dict.fromkeys((*self.needs, *self.after, *(gate for gate, _ in self.gates))))


_P = "finetune_pipeline"

STEPS: tuple[Step, ...] = (
    Step(
        "base_model",
        make=f"{_P}.models.base_model:base_model",
        external=External(
            "base_model_source",
            f"{_P}.models.model_source:source_fingerprint",
            "The files of the base model that the declaration names; a commit on the Hub never changes.",
        ),
        config_sections=("base", "use"),
        kinds=("huggingface",),
        description="The base model: pinned, license checked, as a local folder of safetensors.",
    ),
    Step(
        "raw_examples",
        make=f"{_P}.ingest.assets:raw_examples",
        external=External(
            "sources",
            f"{_P}.ingest.assets:sources_fingerprint",
            "The raw rows: every file, object and data set of the declared `sources`.",
        ),
        config_sections=("sources", "answer"),
        version="5",
        check="every_row_accounted",
        rows=("examples.jsonl",),
        kinds=("jsonl",),
        description="Rows of every declared source, each with a stable id and its origin.",
    ),
    Step(
        "clean_examples",
        make=f"{_P}.clean.assets:clean_examples",
        needs=("raw_examples", "base_model"),
        config_sections=("clean", "answer", "prompt"),
        version="9",
        check="ledger_reconciles",
        check_names=(
            "one completion for a prompt",
            "near duplicates agree",
            "near-duplicate threshold as declared",
        ),
        rows=("examples.jsonl",),
        kinds=("jsonl",),
        description="Cleaned JSONL, and the ledger of what was fixed and what was dropped, and why.",
    ),
    Step(
        "suitability_report",
        make=f"{_P}.suitability.assets:suitability_report",
        needs=("raw_examples", "clean_examples", "base_model"),
        config_sections=("suitability", "answer", "prompt", "baseline", "train", "split", "use"),
        version="6",
        check="worth_tuning",
        check_names=(
            "usable examples",
            "examples for a reliable result",
            "tool",
            "fits into this machine's memory",
            "pays for itself",
        ),
        always_new=True,
        computes=True,
        kinds=("report",),
        description="Whether prompting, retrieval, fine-tuning or both fit the task; with what method, at what cost.",
    ),
    Step(
        "data_quality",
        make=f"{_P}.quality.assets:data_quality",
        needs=("raw_examples", "clean_examples"),
        gates=(("suitability_report", "clean_examples"),),
        config_sections=("quality", "answer", "clean", "sources"),
        version="6",
        check="quality_gate",
        check_names=f"{_P}.quality.suite:check_names",
        kinds=("greatexpectations",),
        description="Great Expectations on the cleaned rows: the declared share of them has to pass every rule.",
    ),
    Step(
        "review_sample",
        make=f"{_P}.review.assets:review_sample",
        external=External(
            "review_rounds",
            f"{_P}.review.history:ended_fingerprint",
            "The rounds of the review that ended without approval: each asks for a new sample.",
        ),
        needs=("clean_examples",),
        gates=(("data_quality", "clean_examples"),),
        config_sections=("review",),
        version="4",
        rows=("sample.jsonl",),
        kinds=("jsonl",),
        description="A random sample of the cleaned rows for review in the desk.",
    ),
    Step(
        "expert_review",
        make=f"{_P}.review.assets:expert_review",
        external=External(
            "reviews",
            f"{_P}.review.assets:reviews_fingerprint",
            "The experts' verdicts, as given in the desk or recorded in files.",
        ),
        needs=("clean_examples", "review_sample", "base_model"),
        gates=(("data_quality", "clean_examples"),),
        config_sections=("review", "answer", "clean", "quality", "prompt"),
        version="7",
        check="review_gate",
        check_names=(
            "every row reviewed",
            "share of rows that are right",
            "lower bound of that share",
            "verdicts unchanged since the gate failed",
        ),
        rows=("examples.jsonl",),
        kinds=("review",),
        description="The experts' verdicts, edits and agreement; waits for people, for days if need be.",
    ),
    Step(
        "data_split",
        make=f"{_P}.split.assets:data_split",
        needs=("raw_examples", "clean_examples", "expert_review"),
        gates=(("expert_review", "clean_examples"),),
        config_sections=("split", "answer"),
        version="7",
        check="no_overlap",
        check_names=(
            "no overlap between test and training",
            "test rows",
            "share of test rows",
            "slices present in test",
            "near duplicates kept in one split",
        ),
        rows=("train.jsonl", "validation.jsonl", "test.jsonl"),
        kinds=("jsonl",),
        description="Train, validation and test: by group and near-duplicate cluster, test rows frozen.",
    ),
    Step(
        "training_plan",
        make=f"{_P}.train.plan.assets:training_plan",
        needs=("data_split", "base_model"),
        gates=(("data_split", "expert_review"),),
        config_sections=("train", "prompt", "suitability"),
        check="fits_into_memory",
        blocking=False,
        check_names=("the training fits into the memory", "the checkpoints fit on the disk"),
        always_new=True,
        computes=True,
        kinds=("pytorch", "report"),
        description="Memory, time and cost of the declared training, measured in a few steps; where it fits.",
    ),
    Step(
        "baseline_report",
        make=f"{_P}.baseline.assets:baseline_report",
        needs=("data_split", "base_model"),
        after=("training_plan",),
        gates=(("data_split", "expert_review"),),
        config_sections=("baseline", "evaluate", "answer", "prompt", "train.prompted_model", "serve.precision"),
        version="4",
        rows=("answers.jsonl",),
        always_new=True,
        computes=True,
        kinds=("report",),
        description="What prompting and a classical model reach on the test rows, before anything is trained.",
    ),
    Step(
        "training_search",
        make=f"{_P}.train.search.assets:training_search",
        needs=("data_split", "base_model"),
        after=("baseline_report",),
        gates=(("data_split", "expert_review"),),
        config_sections=("search", "train", "prompt", "answer"),
        always_new=True,
        computes=True,
        kinds=("pytorch", "mlflow", "report"),
        description="Settings of the training, compared on the validation rows; at once where none are searched.",
    ),
    Step(
        "adapter",
        make=f"{_P}.train.assets:adapter",
        needs=("data_split", "base_model", "training_search"),
        after=("training_plan",),
        gates=(("data_split", "expert_review"),),
        config_sections=("train", "prompt", "answer"),
        version="5",
        check="learns_and_converges",
        check_names=("the loss is finite", "the validation loss fell", "no overfitting"),
        always_new=True,
        computes=True,
        kinds=("pytorch", "mlflow"),
        description="The trained weights: what is learned is checked before, the loss is watched during, training.",
    ),
    Step(
        "eval_report",
        make=f"{_P}.evaluate.assets:eval_report",
        external=External(
            "live_version",
            f"{_P}.serve.assets:live_version",
            "The version behind the endpoint that a new adapter is compared with.",
        ),
        needs=("data_split", "base_model", "baseline_report", "adapter"),
        gates=(("adapter", "data_split"),),
        config_sections=("evaluate", "answer", "prompt", "suitability", "serve.precision"),
        version="5",
        rows=("answers.jsonl",),
        always_new=True,
        computes=True,
        kinds=("report",),
        description="Prompts, classical model, live version and tuned model on the same test rows; general ability.",
    ),
    Step(
        "release_decision",
        make=f"{_P}.release.assets:release_decision",
        needs=("eval_report", "adapter", "data_split"),
        config_sections=("release", "split"),
        version="6",
        check="release_gate",
        check_names=f"{_P}.release.decide:check_names",
        always_new=True,
        kinds=("report",),
        description="PROMOTE, REJECT or INCONCLUSIVE, with every reason.",
    ),
    Step(
        "registered_model",
        make=f"{_P}.release.assets:registered_model",
        needs=("release_decision", "eval_report", "adapter", "data_split", "base_model"),
        gates=(("release_decision", "eval_report"),),
        config_sections=("base", "use", "sources", "prompt", "description"),
        version="2",
        always_new=True,
        kinds=("mlflow",),
        description="A version in MLflow's registry with model card, license, lineage and checksums.",
    ),
    Step(
        "deployed_endpoint",
        make=f"{_P}.serve.assets:deployed_endpoint",
        external=External(
            "deployment_state",
            f"{_P}.serve.assets:deployment_fingerprint",
            "Rollbacks and holds: what was done to the deployed version since.",
        ),
        needs=("registered_model", "release_decision", "eval_report", "adapter", "data_split", "base_model"),
        gates=(("release_decision", "eval_report"),),
        config_sections=("serve", "prompt", "answer"),
        version="2",
        check="parity",
        check_names=("served equals evaluated", "the adapter has an effect", "not rolled back"),
        always_new=True,
        kinds=("endpoint",),
        description="The version behind the endpoint, after the held-out rows were replayed through it.",
    ),
    Step(
        "traffic_report",
        make=f"{_P}.monitor.assets:traffic_report",
        external=External(
            "traffic_log",
            f"{_P}.monitor.assets:traffic_fingerprint",
            "The endpoint's log of requests, within the declared window.",
        ),
        needs=("deployed_endpoint", "data_split", "eval_report"),
        config_sections=("monitor", "serve", "answer"),
        version="3",
        check="no_alarm",
        check_names=(
            "enough traffic",
            "answers keep the format",
            "answers come in time",
            "requests are answered",
            "no drift: kinds of answers",
        ),
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
        if found & {*step.upstream}:
            found.add(step.asset)
    return [step.asset for step in STEPS if step.asset in found]


def drawn_upstream(step: Step) -> tuple[str, ...]:
    """The assets to draw an edge from: the assets of `step.upstream`, without those that a longer path implies.

    Dagster calls an asset stale when the data version of an asset at the other end of an edge changed. So an asset that
    is read keeps its edge unless the longer path carries every change of it: every asset on that path is `always_new`.
    One that only comes first, or is a gate, carries nothing and needs no edge where there is any longer path.
    """
    drawn = [name for name in step.upstream if name in step.needs or not _implied(name, step.upstream, _ancestors)]
    return tuple(name for name in drawn if name not in step.needs or not _implied(name, drawn, _carried))


def _implied(name: str, others: Sequence[str], reached: Callable[[str], set[str]]) -> bool:
    return any(name in reached(other) for other in others if other != name)


def _ancestors(asset: str) -> set[str]:
    found: set[str] = set()
    for name in BY_NAME[asset].upstream:
        found |= {name, *_ancestors(name)}
    return found


def _carried(asset: str) -> set[str]:
    """The assets that cannot change without a change of this one."""
    step = BY_NAME[asset]
    found: set[str] = set()
    for name in step.needs if step.always_new else ():
        found |= {name, *_carried(name)}
    return found
