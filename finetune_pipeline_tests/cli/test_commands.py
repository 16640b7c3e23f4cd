"""The `finetune` command: invalid input ends with an error message and a stable exit code."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from upath import UPath

from finetune_pipeline import errors
from finetune_pipeline.cli.commands import main
from finetune_pipeline.cli.docs import command_line, configuration
from finetune_pipeline.definitions import build
from finetune_pipeline.store import task_names
from finetune_pipeline_tests.desk import sample_tasks

ROOT = Path(__file__).parents[2]
VALID = "name: {name}\nsources: [{{path: raw/a.csv}}]\nbase: {{path: ../model, license: mit}}\n"
STATUS_MODULES = """
import sys
from finetune_pipeline.cli.commands import main
main(sys.argv[1:], standalone_mode=False)
heavy = {"dagster", "torch", "transformers", "mlflow", "great_expectations", "ray"} & set(sys.modules)
print("heavy modules:", ", ".join(sorted(heavy)) or "none")
"""


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FINETUNE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home" / "dagster"))
    return tmp_path / "data"


def finetune(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def declare(data: Path, name: str, text: str = VALID) -> None:
    (data / name).mkdir(parents=True)
    (data / name / "task.yaml").write_text(text.format(name=name), "utf-8")


def test_exit_codes_are_the_documented_ones() -> None:
    documented = {
        words[0].lstrip("├└─ "): int(words[words.index("exit") + 1])
        for line in (errors.__doc__ or "").splitlines()
        if "exit" in (words := line.replace("├──", "").replace("└──", "").split())[1:2]
    }
    kinds: list[type[errors.FinetuneError]] = [errors.FinetuneError, *errors.FinetuneError.__subclasses__()]
    actual = {kind.__name__: kind.exit_code for kind in kinds}
    assert documented == actual
    assert len(set(actual.values())) == len(actual)


def test_unknown_task(data: Path) -> None:
    result = finetune("run", "nothing")
    assert result.exit_code == errors.DeclarationError.exit_code
    assert "nothing/task.yaml does not exist" in result.stderr.replace("\n", "")


def test_validate_reports_expectations_that_great_expectations_does_not_know(data: Path) -> None:
    declared = "quality: {{expectations: [{{type: expect_column_values_to_be_nul, kwargs: {{column: prompt}}}}]}}\n"
    declare(data, "t", VALID + declared)
    result = finetune("validate", "t")
    assert result.exit_code == errors.DeclarationError.exit_code
    message = " ".join(result.stderr.split())
    assert "quality.expectations.0.type: no expectation for a table in memory is called" in message
    assert "Did you mean expect_column_values_to_be_null?" in message


def test_validate_reports_every_problem_of_a_declaration(data: Path) -> None:
    declare(data, "t", VALID + "trian: {{}}\nsplit: {{test: 0.9}}\nquality: {{mostly: 2}}\n")
    result = finetune("validate", "t")
    assert result.exit_code == errors.DeclarationError.exit_code
    message = " ".join(result.stderr.split())
    assert "trian: unknown key. Did you mean `train`?" in message
    assert "split.test" in message
    assert "quality.mostly" in message


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("01_ingest/raw_examples/current", b"../../raw"),
        ("02_clean/clean_examples/current", b"\xff\xfe"),
        ("02_clean/clean_examples/k1/manifest.json", b"[]"),
    ],
)
def test_status_names_a_damaged_file_in_the_line_of_its_task(
    data: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: bytes
) -> None:
    for name in ("damaged", "fine"):
        declare(data, name, VALID.replace("raw/a.csv", "{name}.csv"))
        (data / name / f"{name}.csv").write_text("input,output\na,b\n", "utf-8")
        (data / name / "02_clean" / "clean_examples" / "k1").mkdir(parents=True)
    (data / "damaged" / "02_clean" / "clean_examples" / "current").write_text("k1", "utf-8")
    (data / "damaged" / file).parent.mkdir(parents=True, exist_ok=True)
    (data / "damaged" / file).write_bytes(content)
    monkeypatch.setattr("finetune_pipeline.cli.commands.out", Console(width=400))
    result = finetune("status")
    assert result.exit_code == 0, result.exception
    lines = {line.strip().split("  ")[0]: line for line in result.output.splitlines()}
    assert "finetune run fine" in lines["fine"]
    assert Path(file).name in lines["damaged"] and "is damaged" in lines["damaged"], lines["damaged"]


def deny_search(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """PermissionError for every file in the folder, as for a user without search permission (root always has it)."""
    kind, stat = type(UPath(folder)), os.stat
    opened = kind.open

    def check(path: object) -> None:
        if str(path).startswith(f"{folder}/"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def stat_of(path: Any, *given: Any, **named: Any) -> os.stat_result:
        check(path)
        return stat(path, *given, **named)

    def open_of(path: Any, *given: Any, **named: Any) -> Any:
        check(path)
        return opened(path, *given, **named)

    monkeypatch.setattr(os, "stat", stat_of)
    monkeypatch.setattr(kind, "open", open_of)


def test_a_task_that_cannot_be_read_does_not_hide_the_others(
    data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("fine", "locked", "locked_raw"):
        declare(data, name)
        (data / name / "raw").mkdir()
        (data / name / "raw" / "a.csv").write_text("input,output\na,b\n", "utf-8")
    (data / "gone").symlink_to(data / "nowhere")
    (data / "linked").mkdir()
    (data / "linked" / "task.yaml").symlink_to(data / "nowhere")
    (data / "README.md").write_text("no task", "utf-8")
    deny_search(monkeypatch, data / "locked")
    deny_search(monkeypatch, data / "locked_raw" / "raw")
    monkeypatch.setattr("finetune_pipeline.cli.commands.out", Console(width=400))
    result = finetune("status")
    assert result.exit_code == 0, result.exception
    lines = {line.strip().split("  ")[0]: line for line in result.output.splitlines()}
    assert lines.keys() == {"task", "fine", "gone", "linked", "locked", "locked_raw"}
    assert "finetune run fine" in lines["fine"]
    assert "task.yaml cannot be read: Permission denied" in lines["locked"]
    assert "raw/a.csv" in lines["locked_raw"] and "Permission denied" in lines["locked_raw"]
    assert "task.yaml does not exist" in lines["gone"] and "task.yaml does not exist" in lines["linked"]

    build(task_names())
    assert all(f"the task `{name}` is not loaded" in caplog.text for name in ("gone", "linked", "locked"))
    assert "the task `fine`" not in caplog.text


def test_validate_checks_sources_and_base_model(data: Path) -> None:
    declare(data, "t")
    result = finetune("validate", "t")
    assert result.exit_code == errors.DeclarationError.exit_code
    message = " ".join(result.stderr.split())
    assert "raw/a.csv" in message
    assert "base" in message


def test_status_names_an_invalid_declaration_and_shows_the_other_tasks(data: Path) -> None:
    declare(data, "broken", "name: [")
    declare(data, "fine")
    result = finetune("status")
    assert result.exit_code == 0
    assert "not valid YAML" in " ".join(result.output.split())
    assert "fine" in result.output


@pytest.mark.parametrize(
    "line",
    [
        r'description: "a \U00110000 b"',
        r'description: "thanks \ud83d"',
        "seed: 1" + ":00" * 300 + ".5",
    ],
)
def test_a_declaration_that_cannot_be_parsed_does_not_hide_the_others(
    data: Path, line: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(data, "broken", VALID + line + "\n")
    declare(data, "fine")
    monkeypatch.setattr("finetune_pipeline.cli.commands.out", Console(width=400))
    result = finetune("status")
    assert result.exit_code == 0, result.exception
    lines = {row.strip().split("  ")[0]: row for row in result.output.splitlines()}
    assert "declaration" in lines["broken"] and "fine" in lines
    build(task_names())
    assert "the task `broken` is not loaded" in caplog.text and "the task `fine`" not in caplog.text


def test_status_names_what_is_wrong_with_each_task(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(data, "cron", VALID + "automation: {{schedule: every monday}}\n")
    declare(data, "no_source")
    declare(data, "My Task", "name: x")
    declare(data, "fine")
    (data / "fine" / "raw").mkdir()
    (data / "fine" / "raw" / "a.csv").write_text("input,output\na,b\n", "utf-8")
    monkeypatch.setattr("finetune_pipeline.cli.commands.out", Console(width=400))
    result = finetune("status")
    assert result.exit_code == 0
    lines = {line.strip().split("  ")[0]: line for line in result.output.splitlines()}
    assert "a cron line has five fields" in lines["cron"]
    assert "raw/a.csv, which does not exist" in lines["no_source"]
    assert "declaration" in lines["My Task"]
    assert "finetune run fine" in lines["fine"]


def test_status_without_tasks_shows_how_to_make_one(data: Path) -> None:
    assert "finetune init" in finetune("status").output


def test_a_port_in_use_is_named_with_a_hint(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("FINETUNE_DAGSTER_URL", f"http://127.0.0.1:{port}")
        result = finetune("up")
    assert result.exit_code == errors.PortInUse.exit_code
    assert f"127.0.0.1:{port}" in result.stderr
    assert "FINETUNE_DAGSTER_URL" in result.stderr


def test_help_is_printed_by_a_subprocess() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "finetune_pipeline.cli.commands", "-h"], capture_output=True, text=True, check=True
    )
    assert "rollback" in done.stdout


def test_reference_pages_are_up_to_date() -> None:
    hint = "run `make docs`"
    assert (ROOT / "docs" / "configuration.md").read_text("utf-8") == configuration(), hint
    assert (ROOT / "docs" / "cli.md").read_text("utf-8") == command_line(), hint


def test_a_user_of_the_desk_is_created_and_removed(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_NEW_PASSWORD", "correct horse battery")
    assert "anna can sign in" in finetune("user", "anna").stdout
    assert "can no longer sign in" in finetune("user", "anna", "--remove").stdout
    gone = finetune("user", "anna", "--remove")
    assert gone.exit_code == errors.DataError.exit_code
    assert "no user `anna`" in gone.stderr


def test_brackets_in_user_texts_are_shown(data: Path) -> None:
    declare(data, "t", VALID.replace("raw/a.csv", "raw/[/foo].csv"))
    result = finetune("validate", "t")
    assert result.exit_code == errors.DeclarationError.exit_code, result.exception
    assert "[/foo].csv" in result.stderr
    declare(data, "u", VALID + "description: 'a [/bold] :warning: [x]'\n")
    assert "a [/bold] :warning: [x]" in finetune("status", "u").output
    assert "[/foo]" in finetune("run", "[/foo]").stderr
    (data / "[/").mkdir()
    declare(data, "[name]")
    assert "[name]" in finetune("status").output


def test_two_sources_with_the_same_name_are_an_error(data: Path) -> None:
    declare(data, "t", VALID.replace("]", ", {{path: more/a.csv}}]"))
    result = finetune("validate", "t")
    assert result.exit_code == errors.DeclarationError.exit_code
    message = " ".join(result.stderr.split())
    assert "sources: sources 0 and 1 have the same name 'a': give each its own `name`" in message
    assert "rot13" in validate_encoding(data, "rot13")


def validate_encoding(data: Path, encoding: str) -> str:
    declare(data, encoding, VALID.replace("raw/a.csv", f"raw/a.csv, encoding: {encoding}"))
    return finetune("validate", encoding).stderr


def test_a_name_that_the_terminal_cannot_encode_is_escaped(data: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "finetune_pipeline.cli.commands", "init", "t", "--from", b"no\xff.csv"],
        capture_output=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == errors.DataError.exit_code, done.stderr.decode()
    assert b"does not exist" in done.stderr


def test_status_does_not_load_dagster(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading Dagster takes seconds; `status` reads artifacts alone. Run in a process of its own, on a task that has
    every asset, so that all fingerprints are computed."""
    sample_tasks.make("parcels", until="traffic_report")
    for arguments in (["status"], ["status", "parcels"]):
        done = subprocess.run(
            [sys.executable, "-c", STATUS_MODULES, *arguments], capture_output=True, text=True, check=True
        )
        assert "parcels" in done.stdout
        assert done.stdout.splitlines()[-1] == "heavy modules: none"
