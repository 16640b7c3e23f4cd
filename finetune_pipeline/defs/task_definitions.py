"""The definitions of one task; or, where its declaration is wrong, one external asset that reports the error.

    task_definitions("support_tickets")    its assets, sources, jobs, sensors and schedules
    task_definitions("My Task")            the asset _broken_tasks/My_Task_1f0c, which nothing can materialize

All other tasks are loaded. The error is also a warning in the log of the code location, in `finetune status` and in the
desk.
"""

import logging
import re

import dagster as dg

from finetune_pipeline.defs.assets import task_assets
from finetune_pipeline.defs.automation import task_automation
from finetune_pipeline.defs.source_assets import task_sources
from finetune_pipeline.errors import DeclarationError, FinetuneError
from finetune_pipeline.materialize import open_task
from finetune_pipeline.records import content_id

GROUP = "_broken_tasks"  # no task can have this name: config/task.py requires a letter first
_log = logging.getLogger(__name__)


def task_definitions(name: str) -> dg.Definitions:
    """Never raises for what is in the task's own folder: one wrong task must not keep the others from loading."""
    try:
        task, _ = open_task(name)
        return dg.Definitions.merge(
            dg.Definitions(assets=[*task_assets(task), task_sources(task)]), task_automation(task)
        )
    except (FinetuneError, dg.DagsterInvalidDefinitionError) as error:
        _log.warning("the task `%s` is not loaded: %s", name, error)
        return dg.Definitions(assets=[_broken(name, error)])


def _broken(name: str, error: Exception) -> dg.AssetSpec:
    problems = error.problems if isinstance(error, DeclarationError) else ()
    reason = error.message if isinstance(error, FinetuneError) else str(error)
    hint = error.hint if isinstance(error, FinetuneError) else ""
    next_step = f"Correct {name}/task.yaml, then reload the definitions."
    lines = (f"The task `{name}` is not loaded: {reason}", *(f"- {problem}" for problem in problems), hint, next_step)
    return dg.AssetSpec(
        key=dg.AssetKey([GROUP, key_part(name)]),
        group_name=GROUP,
        description="\n".join(line for line in lines if line),
        metadata={"task": name, "problem": str(error)},
        kinds={"error"},
    )


def key_part(name: str) -> str:
    """A folder's name as Dagster takes it in a key; a hash tells names apart in which characters were replaced."""
    plain = re.sub(r"[^A-Za-z0-9_]", "_", name)
    return plain if plain == name else f"{plain}_{content_id(name)[:4]}"
