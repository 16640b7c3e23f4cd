"""The `finetune` command: arguments and exit codes. Heavy modules are imported inside the commands.

    finetune run support_tickets

The exit codes are those of errors.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.text import Text

from finetune_pipeline.cli.terminal import RichTerminal, console
from finetune_pipeline.errors import FinetuneError, GateRefused, WaitingForPeople

out = console()


def show(text: str) -> None:
    """Print without line breaks of our own, so that a command in the text can be copied."""
    out.print(text, soft_wrap=True)


def materialize(task: str, until: str | None = None) -> None:
    """Materialize what is missing or stale of a task; where a gate or people stop it, show its state before the
    error."""
    from finetune_pipeline.cli.status import summary
    from finetune_pipeline.defs.run import run_task

    try:
        run_task(task, RichTerminal(out), until=until)
    except (GateRefused, WaitingForPeople):
        out.print(summary(task))
        raise


class Commands(click.Group):
    """A group of commands; a FinetuneError is printed and ends the process with its exit code."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except FinetuneError as error:
            console(error=True).print(Text.assemble(("error: ", "red"), str(error)), soft_wrap=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            console(error=True).print("stopped; finished artifacts are kept: run the same command again to continue")
            sys.exit(130)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="finetune-pipeline")
def main() -> None:
    """Fine-tune a language model on your own examples, and know that it deserves to be shipped."""


@main.command()
@click.argument("task")
@click.option(
    "--from",
    "source",
    required=True,
    type=click.Path(path_type=Path),
    help="File of examples: CSV, JSONL, JSON or Parquet.",
)
@click.option("--input", "input_", help="Column of the prompt; default: detected from its name.")
@click.option("--output", help="Column of the completion; default: detected from its name.")
@click.option("--outputs", default="", help="Columns, separated by commas, that together are a JSON completion.")
def init(task: str, source: Path, input_: str | None, output: str | None, outputs: str) -> None:
    """Create data/TASK with a commented task.yaml, filled in from a file of examples."""
    from finetune_pipeline.ingest.scaffold import create

    path = create(task, source, input_, output, tuple(name.strip() for name in outputs.split(",") if name.strip()))
    show(f"wrote {path}\nnext: review it, then run `finetune validate {task}` and `finetune run {task}`")


@main.command()
@click.argument("task")
def validate(task: str) -> None:
    """List every problem of TASK; makes nothing.

    It checks the declaration, the sources, the expectations, the base model and the recorded verdicts."""
    from finetune_pipeline.cli.status import validation_report

    show(validation_report(task))


@main.command()
@click.argument("task")
def run(task: str) -> None:
    """Materialize the missing and stale assets of TASK; stops where a review by people is needed."""
    from finetune_pipeline.cli.status import summary

    materialize(task)
    out.print(summary(task))


@main.command()
@click.argument("task")
@click.option("--show-tokens", is_flag=True, help="Show what is learned of ten rows, token by token, and do not train.")
def train(task: str, show_tokens: bool) -> None:
    """Materialize the adapter of TASK, and what it needs."""
    from finetune_pipeline.cli.status import summary

    materialize(task, until="data_split" if show_tokens else "adapter")
    if not show_tokens:
        out.print(summary(task))
        return
    from finetune_pipeline.cli.tokens import shown
    from finetune_pipeline.materialize import open_task
    from finetune_pipeline.train.preview import preview_of

    out.print(shown(preview_of(*open_task(task))))


@main.command()
@click.argument("task")
def plan(task: str) -> None:
    """Predict memory, time and cost of TASK's training, from a few measured steps; does not train.

    It materializes what is missing up to the plan, and shows on which devices and with which methods it fits."""
    from finetune_pipeline.cli.plan import shown
    from finetune_pipeline.materialize import open_task

    materialize(task, until="training_plan")
    out.print(shown(*open_task(task)))


@main.command()
@click.argument("task", required=False)
def status(task: str | None) -> None:
    """Show the state of all tasks, or one TASK in detail."""
    from finetune_pipeline.cli.status import overview, summary

    out.print(summary(task) if task else overview())


@main.command()
def sync() -> None:
    """Deliver to MLflow what trainings on this machine recorded while it was away."""
    from finetune_pipeline import tracking

    if not tracking.pending():
        show("nothing to deliver: no training of this machine waits for MLflow")
    tracking.sync(show)


@main.command()
def up() -> None:
    """Start the Dagster UI and daemon, the MLflow UI, the desk and the endpoint; Ctrl-C stops them."""
    from finetune_pipeline.cli.services import up as start
    from finetune_pipeline.defs.run import instance
    from finetune_pipeline.defs.run_monitoring import fail_dead_runs
    from finetune_pipeline.desk.users import announce, first_start

    with instance() as dagster:  # creates DAGSTER_HOME
        fail_dead_runs(dagster)
    password = first_start()
    if password is not None:
        show(announce(password))
    start(show)


@main.command()
def serve() -> None:
    """Start only the OpenAI-compatible endpoint, at $FINETUNE_ENDPOINT_URL."""
    from finetune_pipeline.config.addresses import address, host_and_port
    from finetune_pipeline.serve.server import run as run_endpoint

    run_endpoint(*host_and_port(address("FINETUNE_ENDPOINT_URL")))


@main.command()
def desk() -> None:
    """Start only the desk, at $FINETUNE_DESK_URL."""
    from finetune_pipeline.config.addresses import address, host_and_port
    from finetune_pipeline.desk.app import run as run_desk

    run_desk(*host_and_port(address("FINETUNE_DESK_URL")))


@main.command()
@click.argument("name")
@click.option("--remove", is_flag=True, help="Remove NAME; open sessions end at the next request.")
def user(name: str, remove: bool) -> None:
    """Create user NAME of the desk, or set a new password: from $FINETUNE_NEW_PASSWORD, else a prompt."""
    import os

    from finetune_pipeline.desk.users import add_user, remove_user

    if remove:
        remove_user(name)
        show(f"removed {name}, who can no longer sign in to the desk")
        return
    password = os.environ.get("FINETUNE_NEW_PASSWORD") or click.prompt(
        "password", hide_input=True, confirmation_prompt=True
    )
    add_user(name, password)
    show(f"{name} can sign in to the desk")


@main.command()
@click.argument("task")
@click.option("--reason", default="", help="Recorded in the history of deployments.")
def rollback(task: str, reason: str) -> None:
    """Serve the previous version of TASK again; a running endpoint switches within seconds."""
    from finetune_pipeline.serve.rollback import rollback as move_back

    show(move_back(task, reason))


@main.command()
@click.argument("task")
@click.option("--reason", default="", help="Recorded in the history of deployments.")
def unhold(task: str, reason: str) -> None:
    """Remove the hold that a rollback set on TASK's current version; `finetune run` then deploys it."""
    from finetune_pipeline.serve.rollback import unhold as lift_hold

    show(lift_hold(task, reason))


@main.command()
@click.option("--write", is_flag=True, help="Write docs/configuration.md, docs/cli.md and docs/task.schema.json.")
def docs(write: bool) -> None:
    """Print docs/configuration.md, or write all generated reference pages."""
    from finetune_pipeline.cli.docs import configuration, write_all

    if write:
        for path in write_all(Path("docs")):
            show(f"wrote {path}")
    else:
        show(configuration())


if __name__ == "__main__":
    main()
