"""Sample tasks in a store, with artifacts up to a given asset, made without running the stages.

    make("help_desk", until="review_sample")     a task whose sample waits for review
    make("help_desk", until="traffic_report")    a task with all assets
    declare("broken", {"answer": {"format": "jsn"}})

Artifacts are committed in the order of the graph under the key of the plan, so that they are fresh.
"""

# ruff: noqa: E501 (sentences, a line each)

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from finetune_pipeline.config import Task
from finetune_pipeline.graph import BY_NAME, STEPS
from finetune_pipeline.materialize import gather, open_task, step_key
from finetune_pipeline.records import (
    Artifact,
    Check,
    Drop,
    Example,
    Fix,
    Message,
    Review,
    Verdict,
    content_id,
    write_jsonl,
)
from finetune_pipeline.review import verdict_store
from finetune_pipeline.review.rounds import Round
from finetune_pipeline.statistics.proportion import clopper_pearson
from finetune_pipeline.store import TaskStore, data_root

INTENTS = ["delivery", "returns", "refund", "damaged", "billing", "technical", "question"]
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["intent", "priority", "product", "order"],
    "properties": {
        "intent": {"enum": INTENTS},
        "priority": {"enum": ["high", "normal", "low"]},
        "product": {"enum": ["Lumo lamp", "Brisko kettle", "Zefir fan", "Senda router", None]},
        "order": {"type": ["string", "null"], "pattern": "^HV-[0-9]{5}$"},
    },
}
SYSTEM = (
    "You sort messages to a help desk. Answer with one JSON object: intent, priority (high: danger, fraud, a deadline; "
    "low: nothing is wrong; else normal), product (its full name, or null), order (as HV-12345, or null)."
)
MESSAGES: Sequence[tuple[str, str, str, str | None, str | None]] = (
    ("wheres my kettle?? tracking hasnt moved since thursday. hv 48127", "delivery", "normal", "Brisko kettle", "HV-48127"),
    ("Hello, I would like to send the lamp back, it is lovely but far too bright for our hallway. How do I get a label?", "returns", "normal", "Lumo lamp", None),
    ("The fan started to smell of burning and there was smoke. I pulled the plug. What now??", "technical", "high", "Zefir fan", None),
    ("No rush at all, I was just curious roughly when the lamp might turn up. Enjoy your weekend!", "delivery", "low", "Lumo lamp", None),
    ("You have charged my card twice for order #92041, please refund one of the payments immediately.", "billing", "high", None, "HV-92041"),
    ("Does the Senda work with a fibre modem? We move in autumn and I am only looking around.", "question", "low", "Senda router", None),
    ("Kettle arrived with a crack right through the handle. Order HV-30518.", "damaged", "normal", "Brisko kettle", "HV-30518"),
    ("I sent the router back three weeks ago (order 77120) and still no money on my account.", "refund", "normal", "Senda router", "HV-77120"),
    ("third time im writing about this!! nobody answers. the fan was due two weeks ago, order 31865, where is it", "delivery", "high", "Zefir fan", "HV-31865"),
    ("Router drops the connection every evening around nine. I have restarted it, updated it, and moved it to another room.", "technical", "normal", "Senda router", None),
)  # fmt: skip
ROWS = 120
SAMPLE = 12


def declaration(name: str, **sections: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "name": name,
        "description": "Turn a customer's message into the JSON that the help desk works with.",
        "sources": [{"name": "shop", "path": "raw/shop.csv", "input": "text", "output": "answer"}],
        "prompt": {"system": SYSTEM},
        "answer": {"format": "json", "schema": SCHEMA, "slice_by": "intent"},
        "base": {"path": "model", "license": "apache-2.0"},
        "quality": {"min_rows": 20},
        "review": {"min_rows": SAMPLE},
    }
    return {**plain, **sections}


def declare(name: str, sections: Mapping[str, Any] | None = None) -> Path:
    folder = Path(str(data_root())) / name
    (folder / "raw").mkdir(parents=True, exist_ok=True)
    (folder / "raw" / "shop.csv").write_text("text,answer\n", "utf-8")
    (folder / "task.yaml").write_text(yaml.safe_dump(declaration(name, **(sections or {})), sort_keys=False), "utf-8")
    return folder


def example(number: int) -> Example:
    text, intent, priority, product, order = MESSAGES[number % len(MESSAGES)]
    answer = json.dumps({"intent": intent, "priority": priority, "product": product, "order": order})
    prompt = text if number < len(MESSAGES) else f"{text} ({number})"
    messages = (Message("user", prompt), Message("assistant", answer))
    return Example(content_id(prompt, str(number)), messages, "shop", f"shop.csv:{number + 2}")


class Maker:
    """Writes the artifacts of one task, one asset after the other."""

    def __init__(self, name: str, rows: Sequence[Example], passed: Mapping[str, bool]) -> None:
        self.task, self.store = open_task(name)
        self.rows = list(rows)
        self.passed = passed

    def make(self, asset: str) -> Artifact:
        step = BY_NAME[asset]
        inputs = gather(step, self.store)
        assert not isinstance(inputs, str), inputs
        key = step_key(step, self.task, self.store, inputs)
        with self.store.scratch(asset) as out:
            summary, verdict = getattr(self, asset)(out)
            facts = {
                "made_at": "2026-01-05T10:00:00+00:00",
                "inputs": {name: a.content_hash for name, a in inputs.items()},
                "summary": summary,
                "verdict": verdict.to_json() if verdict else None,
            }
            return self.store.commit(asset, key, out, facts)

    def content(self, asset: str) -> str:
        artifact = self.store.current(asset)
        assert artifact is not None
        return artifact.content_hash

    def verdict(self, gate: str, about: str, summary: str, *checks: Check) -> Verdict:
        passed = self.passed.get(gate, True)
        return Verdict(gate, passed, self.content(about), summary, checks)

    def base_model(self, out: Path) -> Any:
        _json(out / "base_model.json", {"id": "model", "license": "apache-2.0"})
        return {"parameters": 134515008}, None

    def raw_examples(self, out: Path) -> Any:
        extra = [example(1000 + n) for n in range(len(self.rows) // 6)]
        write_jsonl(out / "examples.jsonl", [*self.rows, *extra])
        write_jsonl(
            out / "drops.jsonl", [Drop(f"unreadable{n}", f"chat.jsonl:{n}", "ingest", "invalid-json") for n in range(5)]
        )
        return {"rows": len(self.rows) + len(extra), "dropped": 5}, None

    def clean_examples(self, out: Path) -> Any:
        reasons = ("near-duplicate", "exact-duplicate", "near-duplicate", "contradiction", "invalid-completion")
        extra = [example(1000 + n) for n in range(len(self.rows) // 6)]
        drops = [Drop(e.id, e.origin, "clean", reasons[n % 5], "like shop.csv:2") for n, e in enumerate(extra)]
        rules = ("pii-email", "html", "mojibake")
        fixes = [Fix(e.id, e.origin, "clean", rules[n % 3], "1 place") for n, e in enumerate(self.rows[:14])]
        write_jsonl(out / "examples.jsonl", self.rows)
        write_jsonl(out / "drops.jsonl", drops)
        write_jsonl(out / "fixes.jsonl", fixes)
        return {"rows": len(self.rows), "dropped": len(drops)}, None

    def suitability_report(self, out: Path) -> Any:
        (out / "report.md").write_text(
            "# Suitability report\n\n**Yes.** <script>alert(1)</script>\n\n| rule | result |\n|---|---|\n| examples | enough |\n",
            "utf-8",
        )
        checks = (
            Check("usable examples", True, "at least 200", "780"),
            Check("examples for a reliable result", False, "at least 1,000", "780", "warning"),
        )
        return {"advice": "fine-tune"}, self.verdict(
            "suitability_report", "clean_examples", "fine-tuning fits", *checks
        )

    def data_quality(self, out: Path) -> Any:
        good = self.passed.get("data_quality", True)
        (out / "report.html").write_text(
            "<!doctype html><title>Data quality</title><style>h1{color:rgb(1,2,3)}</style><h1>Data quality</h1>"
            "<script>document.title='ran'</script>",
            "utf-8",
        )
        failing = (
            [] if good else [{"id": e.id, "origin": e.origin, "rules": ["completion_valid"]} for e in self.rows[:3]]
        )
        write_jsonl(out / "rows.jsonl", failing)
        checks = (
            Check("row_ok", good, "every rule holds, in at least 95 % of the rows", "97.5 % of 120 rows" if good else "91.2 % of 120 rows"),
            Check("declared:0:expect_table_row_count_to_be_between", True, "at least 20 rows are left", "120 rows"),
            Check("completion_valid", good, "every answer is valid JSON of the declared schema, in at least 95 % of the rows", "97.5 % of 120 rows" if good else "91.2 % of 120 rows"),
        )  # fmt: skip
        summary = (
            "97.5 % of 120 rows pass every rule, 95 % required"
            if good
            else "91.2 % of 120 rows pass every rule, 95 % required; failed: every answer is valid JSON of the declared schema: 91.2 % of 120 rows"
        )
        return {"passed": good}, self.verdict("data_quality", "clean_examples", summary, *checks)

    def review_sample(self, out: Path) -> Any:
        sample = self.rows[:SAMPLE]
        write_jsonl(out / "sample.jsonl", sample)
        drawn = frozenset((row.id, row.content_hash) for row in sample)
        _json(out / "round.json", Round(1, 1, 7, "7", "f" * 16, drawn, 0, len(self.rows)).to_json())
        return {"rows": len(sample), "of": len(self.rows)}, None

    def expert_review(self, out: Path) -> Any:
        write_jsonl(out / "examples.jsonl", self.rows[1:])
        write_jsonl(out / "reviews.jsonl", [])
        write_jsonl(out / "fixes.jsonl", [])
        write_jsonl(
            out / "drops.jsonl", [Drop(self.rows[0].id, self.rows[0].origin, "review", "expert-rejected", "anna")]
        )
        check = Check("share of rows that are right", True, "at least 95.0%", "12 of 12 (100.0%)")
        bound = Check(
            "lower bound of that share",
            False,
            "at least 95.0%",
            "77.9%; 47 more rows with none wrong would reach it",
            "warning",
        )
        return {"rows": len(self.rows) - 1}, self.verdict(
            "expert_review", "clean_examples", "12 of 12 reviewed rows are right", check, bound
        )

    def data_split(self, out: Path) -> Any:
        rows = self.rows[1:]
        write_jsonl(out / "train.jsonl", rows[:90])
        write_jsonl(out / "validation.jsonl", rows[90:100])
        write_jsonl(out / "test.jsonl", rows[100:])
        splits = {"train": 90, "validation": 10, "test": len(rows[100:])}
        _json(out / "accounting.json", {"raw": 145, "dropped": {"ingest": {"invalid-json": 5}}, "splits": splits})
        write_jsonl(out / "drops.jsonl", [])
        return {}, self.verdict(
            "data_split",
            "expert_review",
            "90 train, 10 validation, 19 test; no overlap",
            Check("no overlap between test and training", True, "no pair", "none"),
        )

    def baseline_report(self, out: Path) -> Any:
        return self._report(out, {"zero_shot": 0.0, "few_shot": 0.21, "few_shot_retrieved": 0.42, "classical": 0.37})

    def training_plan(self, out: Path) -> Any:
        _json(out / "plan.json", {})
        (out / "report.html").write_text("<!doctype html><title>Plan</title><h1>The plan</h1>", "utf-8")
        return {"verdict": "FITS", "training_time": "3 min 10 s"}, None

    def training_search(self, out: Path) -> Any:
        _json(out / "search.json", {"declared": False})
        (out / "report.html").write_text("<!doctype html><title>Search</title><h1>No search</h1>", "utf-8")
        return {"search": "not declared"}, None

    def adapter(self, out: Path) -> Any:
        _json(out / "training.json", {"steps": 74})
        (out / "training.html").write_text("<!doctype html><title>Training</title><h1>Training</h1>", "utf-8")
        (out / "tokens.html").write_text("<!doctype html><title>Tokens</title><h1>Tokens</h1>", "utf-8")
        return {"steps": 74}, self.verdict("adapter", "data_split", "the loss fell from 2.1 to 0.3 in 74 steps")

    def eval_report(self, out: Path) -> Any:
        return self._report(
            out, {"zero_shot": 0.0, "few_shot": 0.21, "few_shot_retrieved": 0.42, "classical": 0.37, "tuned": 0.84}
        )

    def _report(self, out: Path, exact: Mapping[str, float]) -> Any:
        variants = {
            name: {
                "rows": 130,
                "exact": share,
                "interval": clopper_pearson(round(share * 130), 130, 0.95),
                "valid": min(1.0, share + 0.3),
            }
            for name, share in exact.items()
        }
        _json(out / "report.json", {"rows": 130, "variants": variants, "best_prompted": "few_shot_retrieved"})
        (out / "report.html").write_text(
            "<!doctype html><title>Report</title><style>body{font-family:sans-serif}</style><script>document.title='ran'</script><h1>Evaluation</h1><p>130 test rows.</p>",
            "utf-8",
        )
        return {"rows": 130}, None

    def release_decision(self, out: Path) -> Any:
        good = self.passed.get("release_decision", True)
        outcome = "PROMOTE" if good else "INCONCLUSIVE"
        summary = f"{outcome}: the tuned model has 84.6 % of 130 test rows exactly right, the best prompted baseline (few_shot_retrieved) 42.3 %"
        checks = (
            Check("better than few_shot_retrieved", good, "the interval of the gain lies above 0 points", "+42.3 points, 33.0 to 51.2" if good else "+2.1 points, -4.0 to 8.2"),
            Check("general ability kept", True, "loss rises by at most 10 %", "+1.2 %"),
            Check("holdout reuse", False, "never", "2 decisions were made on it", "warning"),
        )  # fmt: skip
        _json(
            out / "decision.json",
            {"outcome": outcome, "adapter": "a", "evaluation": "e", "checks": [], "summary": summary, "figures": {}},
        )
        (out / "decision.md").write_text(f"# Decision\n\n{summary}\n", "utf-8")
        return {"outcome": outcome}, self.verdict("release_decision", "eval_report", summary, *checks)

    def registered_model(self, out: Path) -> Any:
        _json(out / "model.json", {"name": self.task.name, "version": 3, "registered_at": "2026-01-05T10:20:00+00:00"})
        (out / "MODEL_CARD.md").write_text("# Model card\n\nTuned on 90 rows.\n", "utf-8")
        return {"version": 3}, None

    def deployed_endpoint(self, out: Path) -> Any:
        row = self.rows[100]
        sample = {
            "prompt": row.prompt,
            "tuned": row.completion,
            "base": "I am sorry to hear that! How can I help?",
        }
        _json(out / "endpoint.json", {"task": self.task.name, "sample": sample})
        return {"version": 3, "parity": 1.0, "rows": 130}, self.verdict(
            "deployed_endpoint", "registered_model", "130 of 130 replayed answers are equal"
        )

    def traffic_report(self, out: Path) -> Any:
        (out / "report.html").write_text("<!doctype html><h1>Traffic</h1>", "utf-8")
        return {"requests": 1240, "invalid_share": 0.012, "p95_seconds": 1.4}, self.verdict(
            "traffic_report", "deployed_endpoint", "no alarm"
        )


def make(
    name: str,
    until: str = "review_sample",
    rows: Sequence[Example] | None = None,
    passed: Mapping[str, bool] | None = None,
    sections: Mapping[str, Any] | None = None,
) -> tuple[Task, TaskStore]:
    """Declare the task and make its assets in the graph's order, up to `until`. `passed` sets the verdict of a gate."""
    declare(name, sections)
    maker = Maker(name, rows if rows is not None else [example(n) for n in range(ROWS)], passed or {})
    for step in STEPS:
        if step.asset == "expert_review":
            approve_all(maker.store)
        maker.make(step.asset)
        if step.asset == until:
            break
    return maker.task, maker.store


def approve_all(store: TaskStore, reviewer: str = "anna") -> None:
    sample = store.current("review_sample")
    assert sample is not None
    for row in sample.examples("sample.jsonl"):
        verdict_store.save(store, Review(row.id, row.content_hash, reviewer, "approve", "2026-01-05T10:00:00+00:00"))


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), "utf-8")
