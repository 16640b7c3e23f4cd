"""The declaration of a task, `data/<task>/task.yaml`: one module per section.

    task = load_task(Path("data/support_tickets"))      # DeclarationError lists every problem
    task.train.lora.r                                   # 16

A section defines type, bounds, default and trade-off of its settings; `docs/configuration.md` and the JSON Schema for
editors are generated from them. Sections are frozen; an unknown key is an error. addresses.py reads the addresses of
the servers from the environment: they depend on the machine, not on the task.
"""

from finetune_pipeline.config.answer import AnswerFormat, FormatName, Prompt
from finetune_pipeline.config.automation import Automation
from finetune_pipeline.config.backend import Backend
from finetune_pipeline.config.base import Base
from finetune_pipeline.config.baseline import Baseline
from finetune_pipeline.config.clean import Clean
from finetune_pipeline.config.evaluate import Evaluate
from finetune_pipeline.config.load import load_task, task_from
from finetune_pipeline.config.monitor import Monitor
from finetune_pipeline.config.provider import Hyperparameters, Provider
from finetune_pipeline.config.quality import DeclaredExpectation, Quality
from finetune_pipeline.config.release import Release
from finetune_pipeline.config.review import ReviewRules
from finetune_pipeline.config.search import Parameters, Range, Search
from finetune_pipeline.config.serve import OnInvalid, Precision, Serve
from finetune_pipeline.config.sources import Source
from finetune_pipeline.config.split import Split
from finetune_pipeline.config.suitability import GpuName, Suitability
from finetune_pipeline.config.task import TASK_NAME, Task
from finetune_pipeline.config.train import KeepGeneral, Lora, Preference, Train, Validation

__all__ = [
    "TASK_NAME",
    "AnswerFormat",
    "Automation",
    "Backend",
    "Base",
    "Baseline",
    "Clean",
    "DeclaredExpectation",
    "Evaluate",
    "FormatName",
    "GpuName",
    "Hyperparameters",
    "KeepGeneral",
    "Lora",
    "Monitor",
    "OnInvalid",
    "Parameters",
    "Precision",
    "Preference",
    "Prompt",
    "Provider",
    "Quality",
    "Range",
    "Release",
    "ReviewRules",
    "Search",
    "Serve",
    "Source",
    "Split",
    "Suitability",
    "Task",
    "Train",
    "Validation",
    "load_task",
    "task_from",
]
