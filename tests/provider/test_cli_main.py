"""The command line itself: one set of commands, light, and with errors of one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_childrun.cli.commands import COMMANDS, Command, Group
from airflow_childrun.cli.main import build_parser, main
from tests.provider.conftest import ROOT, AirflowHome

pytestmark = pytest.mark.provider

_LOADED = """
import sys
from airflow_childrun.cli.main import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
print("LOADED", status, *[name for name in ("airflow", "sqlalchemy", "pydantic", "rich") if name in sys.modules])
"""


def loaded_by(*arguments: str) -> tuple[int, set[str]]:
    done = subprocess.run(
        [sys.executable, "-c", _LOADED, *arguments], check=False, capture_output=True, text=True, cwd=ROOT
    )
    _, status, *names = done.stdout.splitlines()[-1].split()
    return int(status), set(names)


def test_help_is_light() -> None:
    """A shell that completes or asks for help waits for nothing."""
    assert loaded_by("--help") == (0, set())
    assert loaded_by("runs", "list", "--help") == (0, set())


def test_commands_with_a_url_do_without_airflow(tmp_path: Path) -> None:
    """Nothing of Airflow is imported, so none needs to be configured."""
    url = f"sqlite:///{tmp_path}/a.db"
    for command in (["migrate"], ["init", "--print-connection"], ["check"], ["runs", "list"], ["verify", "--all"]):
        status, loaded = loaded_by(*command, "--url", url)
        assert status == 0, command
        assert "airflow" not in loaded, command


def every_command() -> list[tuple[list[str], Command]]:
    found: list[tuple[list[str], Command]] = []
    for entry in COMMANDS:
        if isinstance(entry, Group):
            found += [([entry.name, each.name], each) for each in entry.commands]
        else:
            found.append(([entry.name], entry))
    return found


def test_every_command_of_the_plan_is_there() -> None:
    """The list that users and documents know."""
    assert {" ".join(path) for path, _ in every_command()} == {
        "init",
        "check",
        "migrate",
        "cancel",
        "recover",
        "purge",
        "demo",
        "verify",
        "runs list",
        "runs show",
        "runs events",
        "runs tree",
    }


_IN_AIRFLOW = """
import json
from airflow.cli.cli_parser import get_parser
parser = get_parser()
for arguments in json.loads(input()):
    parsed = parser.parse_args(["childrun", *arguments])
    print("PARSED", parsed.func.args[0].target)
"""


def test_airflow_offers_the_same_commands(airflow_home: AirflowHome) -> None:
    """`airflow childrun X` leads to the function of `childrun X`, with the same arguments."""
    needed = {"runs show": ["abc"], "runs events": ["abc"], "runs tree": ["abc"]}
    needed |= {"cancel": ["abc"], "purge": ["--older-than", "1d"]}
    calls = [[*path, *needed.get(" ".join(path), [])] for path, _ in every_command()]
    done = airflow_home.run(sys.executable, "-c", _IN_AIRFLOW, stdin=json.dumps(calls))
    targets = [line.split()[1] for line in done.out.splitlines() if line.startswith("PARSED ")]
    assert targets == [command.target for _, command in every_command()], done.text
    assert [build_parser().parse_args(each).command.target for each in calls] == targets


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["check", "--url", "nonsense"], "connection_invalid"),
        (["check", "--url", "oracle://u:p@h/d"], "dialect_unknown"),
        (["check", "--url", "sqlite:///relative.db"], "connection_invalid"),
        (["check", "--url", "sqlite:////a.db", "--conn-id", "x"], "usage"),
        (["check", "--schema", "s"], "usage"),
        (["init", "--create-role"], "usage"),
        (["init", "--url", "sqlite:////a.db", "--rotate-password"], "usage"),
        (["init", "--url", "sqlite:////a.db", "--share-metadata-credentials"], "usage"),
        (["runs", "list", "--url", "sqlite:////absent/a.db"], "store_schema"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], code: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2 and `error [code]: message` on the standard error, never a traceback."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error [{code}]: ")
    assert err.count("\n") == 1


def test_migrate_check_tells_whether_it_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 1 before, 0 after; it makes nothing itself."""
    url = f"sqlite:///{tmp_path}/a.db"
    assert main(["migrate", "--check", "--url", url]) == 1
    assert list(tmp_path.iterdir()) == []
    assert main(["migrate", "--url", url]) == 0
    capsys.readouterr()
    assert main(["migrate", "--check", "--url", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"].startswith("v1_")
