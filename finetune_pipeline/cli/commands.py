"""The `finetune` command: arguments in, exit codes out, no logic. `finetune --help` imports nothing heavy.

    finetune run support_tickets

Exit codes are those of errors.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.text import Text

from finetune_pipeline.cli.terminal import RichTerminal, console
from finetune_pipeline.errors import FinetuneError, GateRefused, WaitingForPeople

out = console()


def say(text: str) -> None:
    """A text, not broken into lines: a command in it can be copied."""
    out.print(text, soft_wrap=True)


class Command(click.Group):
    """A group whose commands end with the exit code of the error that stopped them."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except FinetuneError as error:
            console(error=True).print(Text.assemble(("error: ", "red"), str(error)), soft_wrap=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            console(error=True).print("stopped; what was finished is kept: run the same command again to go on")
            sys.exit(130)


@click.group(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="finetune-pipeline")
def main() -> None:
    """Fine-tune a language model on your own examples, and know that it deserves to be shipped."""


@main.command()
@click.argument("task")
@click.option("--from", "source", required=True, type=click.Path(path_type=Path), help="CSV, JSONL, JSON or Parquet.")
@click.option("--input", "input_", help="Column that holds the question; found by itself where the names are usual.")
@click.option("--output", help="Column that holds the answer.")
@click.option("--outputs", default="", help="Several columns, with commas, that together make a JSON answer.")
def init(task: str, source: Path, input_: str | None, output: str | None, outputs: str) -> None:
    """Make data/TASK with a commented task.yaml, filled in from a file of examples."""
    from finetune_pipeline.ingest.scaffold import create

    path = create(task, source, input_, output, tuple(name.strip() for name in outputs.split(",") if name.strip()))
    say(f"wrote {path}\nnext: read it, then `finetune validate {task}` and `finetune run {task}`")


@main.command()
@click.argument("task")
def validate(task: str) -> None:
    """Say every problem of TASK's declaration at once; make nothing."""
    from finetune_pipeline.cli.status import validation_report

    say(validation_report(task))


@main.command()
@click.argument("task")
def run(task: str) -> None:
    """Materialize what is missing or stale of TASK, up to where it has to wait for people."""
    from finetune_pipeline.cli.status import summary
    from finetune_pipeline.defs.run import run_task

    try:
        run_task(task, RichTerminal(out))
    except (GateRefused, WaitingForPeople):
        out.print(summary(task))
        raise
    out.print(summary(task))


@main.command()
@click.argument("task", required=False)
def status(task: str | None) -> None:
    """Show where all tasks stand, or one in detail."""
    from finetune_pipeline.cli import status as view

    out.print(view.summary(task) if task else view.overview())


@main.command()
def up() -> None:
    """Start the Dagster UI and daemon, the MLflow UI, the desk and the endpoint; Ctrl-C stops them."""
    from finetune_pipeline.cli.services import up as start
    from finetune_pipeline.defs.run import instance
    from finetune_pipeline.defs.run_monitoring import fail_dead_runs
    from finetune_pipeline.desk.users import first_start

    with instance() as dagster:  # DAGSTER_HOME is made ready
        fail_dead_runs(dagster)
    password = first_start()
    if password:
        say(f"the desk's first user is steward, password {password} (shown once)")
    start(say)


@main.command()
def serve() -> None:
    """Run the OpenAI-compatible endpoint alone, at $FINETUNE_ENDPOINT."""
    from finetune_pipeline.config.addresses import address, host_and_port
    from finetune_pipeline.serve.app import run as run_endpoint

    run_endpoint(*host_and_port(address("FINETUNE_ENDPOINT")))


@main.command()
def desk() -> None:
    """Run the desk alone, at $FINETUNE_DESK_URL."""
    from finetune_pipeline.config.addresses import address, host_and_port
    from finetune_pipeline.desk.app import run as run_desk

    run_desk(*host_and_port(address("FINETUNE_DESK_URL")))


@main.command()
@click.argument("name")
@click.option("--remove", is_flag=True, help="Take NAME out instead; open sessions end with the next click.")
def user(name: str, remove: bool) -> None:
    """Let NAME log in to the desk; asks for a password (or reads $FINETUNE_NEW_PASSWORD)."""
    import os

    from finetune_pipeline.desk.users import add_user, remove_user

    if remove:
        remove_user(name)
        say(f"{name} cannot log in to the desk any more")
        return
    password = os.environ.get("FINETUNE_NEW_PASSWORD") or click.prompt(
        "password", hide_input=True, confirmation_prompt=True
    )
    add_user(name, password)
    say(f"{name} can log in to the desk")


@main.command()
@click.argument("task")
@click.option("--why", default="", help="The reason, kept with the deployment's history.")
def rollback(task: str, why: str) -> None:
    """Serve the version of TASK that was served before; a running endpoint follows within seconds."""
    from finetune_pipeline.serve.deployment_state import rollback as move_back

    say(move_back(task, why))


@main.command()
@click.argument("task")
@click.option("--why", default="", help="The reason, kept with the deployment's history.")
def unhold(task: str, why: str) -> None:
    """Lift the hold that a rollback put on TASK's current version; `finetune run` then deploys it."""
    from finetune_pipeline.serve.deployment_state import unhold as lift_hold

    say(lift_hold(task, why))


@main.command()
@click.option("--write", is_flag=True, help="Write docs/configuration.md, docs/cli.md and docs/task.schema.json.")
def docs(write: bool) -> None:
    """Print (or write) the reference pages, generated from the declaration and this command."""
    from finetune_pipeline.cli.docs import configuration, write_all

    if write:
        for path in write_all(Path("docs")):
            say(f"wrote {path}")
    else:
        say(configuration())


if __name__ == "__main__":
    main()
