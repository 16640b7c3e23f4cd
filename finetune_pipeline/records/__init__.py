"""The records that stages pass on: values only, without I/O of their own beyond reading and writing JSON.

examples.py     Example, Message                       a row
ledger.py       Fix, Drop                              what happened to a row
verdicts.py     Review, Check, Verdict                 what reviewers and gates decided
evaluation.py   Answer, Score, ServedVersion, Decision
artifacts.py    Artifact                               a finished folder with its manifest
revisions.py    newest_first, revision_name, split_name  the names of an artifact's folders
reporter.py     Reporter, Silent, PartReporter         progress of a long step
jsonl.py        Json, dumps, read_jsonl, write_jsonl
hashing.py      content_id
"""

from finetune_pipeline.records.artifacts import Artifact
from finetune_pipeline.records.evaluation import Answer, Decision, Outcome, Score, ServedVersion
from finetune_pipeline.records.examples import Example, Message
from finetune_pipeline.records.hashing import content_id
from finetune_pipeline.records.jsonl import Json, dumps, read_jsonl, write_jsonl
from finetune_pipeline.records.ledger import Drop, Fix
from finetune_pipeline.records.reporter import SILENT, PartReporter, Reporter, Silent
from finetune_pipeline.records.verdicts import Check, Review, ReviewDecision, Verdict

__all__ = [
    "SILENT",
    "Answer",
    "Artifact",
    "Check",
    "Decision",
    "Drop",
    "Example",
    "Fix",
    "Json",
    "Message",
    "Outcome",
    "PartReporter",
    "Reporter",
    "Review",
    "ReviewDecision",
    "Score",
    "ServedVersion",
    "Silent",
    "Verdict",
    "content_id",
    "dumps",
    "read_jsonl",
    "write_jsonl",
]
