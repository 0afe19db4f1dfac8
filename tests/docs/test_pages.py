"""What the documentation shows is true: code runs, commands exist, quotations and links are right."""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import inspect
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from airflow_childrun.cli.commands import COMMANDS, Group
from airflow_childrun.cli.main import build_parser
from tests.docs.pages import PAGES, ROOT, blocks, commands, modules, region
from tests.provider.conftest import AirflowHome
from tests.provider.kit import Ticket, sqlite_connection

README = ROOT / "README.md"
PROMISE = (
    "a recorded call is never repeated; a call in flight when the process dies may be, and carries the same "
    "`io.idempotency_token` both times"
)


def ids(page: Path) -> str:
    return page.stem


def flat(text: str) -> str:
    return " ".join(text.split())


def test_the_readme_is_short_and_promises_what_we_can_keep() -> None:
    """150 lines at most; one sentence about the outside world, word for word."""
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    assert PROMISE in flat(text)


def test_the_readme_names_the_versions_that_the_package_asks_for() -> None:
    """Floors in prose and in pyproject.toml are the same."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (airflow,) = (each for each in project["dependencies"] if each.startswith("apache-airflow"))
    assert airflow == "apache-airflow>=3.2,<3.5"
    assert project["requires-python"] == ">=3.11"
    # For a later Python there are no constraints, so that the first command would fail.
    tried = [each.rpartition(" ")[2] for each in project["classifiers"] if re.fullmatch(r".*:: 3\.\d+", each)]
    assert f"Apache Airflow 3.2 to 3.4, Python {tried[0]} to {tried[-1]}," in flat(README.read_text())


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    """A relative link names a file that is there, and a heading that is in it."""
    for link, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()):
        if "://" not in link:
            target = page.parent / link if link else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), f"{link}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Return what a page's headings are called in links: lower case, dashes for blanks, other marks left out."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


ROWS_OF_THE_README = {
    "a child is": "provider/test_operators.py::test_plain_spawns_wait_and_return_results",
    "a thousand children cost": "provider/test_hook.py::test_a_thousand_children_fit_into_one_task",
    "a worker dies while waiting": "stack/test_kill.py::test_three_kills_change_nothing",
    "the parent is cleared": "stack/test_scenarios.py::test_a_cleared_success_follows_on_clear",
    "results": "stack/test_scenarios.py::test_twenty_children_come_back_in_order_and_their_tree_is_sound",
    "a failed child": "stack/test_scenarios.py::test_a_retry_goes_on_from_the_last_checkpoint",
    "parent and children": "provider/test_cli_runs.py::test_a_tree_shows_each_slot_once_and_leaves_out_no_failure",
    "children on other machines, pools, queues": "stack/test_runner.py::test_twenty_children_are_driven_by_four_dag_runs",
    "children that are DAGs": "provider/test_dag_children.py::test_dag_runs_are_children_like_others",
    "children in Airflow's grid": (
        "provider/test_runner_dag.py::test_airflow_has_the_dag_unpaused_and_an_administrator_its_dag_runs"
    ),
    "a worker slot while waiting": (
        "stack/test_deferral.py::test_a_task_whose_children_sleep_leaves_its_worker_and_survives_a_killed_triggerer"
    ),
    "another schema in a database": "provider/test_init_postgres.py::test_the_login_sees_the_store_alone",
}
"""What the README claims beside `TriggerDagRunOperator`, and the test that fails when it is not so."""


def test_every_row_of_the_readmes_comparison_is_shown_by_a_test() -> None:
    """A row that is added, or becomes untrue, needs another test here."""
    table = README.read_text().partition("`TriggerDagRunOperator` |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| ([^|]+?) \|", table, re.MULTILINE)
    assert rows == list(ROWS_OF_THE_README)
    named = [place.split("::") for place in ROWS_OF_THE_README.values()]
    assert [test for file, test in named if f"def {test}(" not in (ROOT / "tests" / file).read_text()] == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_quotations_are_the_examples(page: Path) -> None:
    """A block that repeats an example repeats it word for word."""
    for block in blocks(page):
        if block.quoted:
            assert block.text.strip() == region(block.quoted).strip()


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_exist_with_these_arguments(page: Path) -> None:
    """Every `childrun` command in the text is understood by the parser."""
    parser = build_parser()
    for arguments in commands(page):
        if not arguments or arguments == ["..."] or arguments[-1] == "..." or "..." in " ".join(arguments):
            continue
        if arguments in (["runs"], ["init", "--url"]):
            continue
        try:
            parsed = parser.parse_args(arguments)
        except SystemExit:
            pytest.fail(f"`childrun {' '.join(arguments)}` in {page.name} is no command")
        assert isinstance(parsed, argparse.Namespace)


def test_modules_that_a_page_says_to_run_can_be_run() -> None:
    """`python -m tests.x` names a module, or a package with a `__main__`."""
    named = sorted(set().union(*(modules(page) for page in PAGES)))
    assert len(named) > 5
    places = [ROOT.joinpath(*name.split(".")) for name in named]
    assert [
        str(place) for place in places if not (place / "__main__.py").exists() and not place.with_suffix(".py").exists()
    ] == []


def test_paths_of_tests_that_a_page_names_are_there() -> None:
    """`pytest tests/x` runs something."""
    for page in PAGES:
        for path in re.findall(r"\btests/[\w/]+(?:\.py)?", page.read_text()):
            assert (ROOT / path).exists(), f"{path} in {page.name}"


def test_the_readme_tells_both_ways_to_run_the_tests() -> None:
    """The whole check, and pytest in one's own environment with the committed constraints."""
    (block,) = (block for block in blocks(README) if ".ci/run" in block.text)
    assert "-e '.[postgres,test,dev]' && pytest" in block.text
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"postgres", "test", "dev"} <= set(extras)


def test_every_command_is_in_the_table() -> None:
    """docs/airflow.md lists what there is."""
    text = (ROOT / "docs" / "airflow.md").read_text()
    names = [
        f"childrun {entry.name} {command.name}" if isinstance(entry, Group) else f"childrun {entry.name}"
        for entry in COMMANDS
        for command in (entry.commands if isinstance(entry, Group) else (entry,))
    ]
    assert [name for name in names if f"| `{name}" not in text] == []


def test_every_argument_of_the_operators_and_every_option_is_in_a_table() -> None:
    """docs/airflow.md explains all that an author can set, with its default."""
    from airflow_childrun.hooks.settings import DEFAULTS
    from airflow_childrun.operators.childrun import AwaitChildRunOperator, SpawnChildRunOperator
    from airflow_childrun.provider_info import get_provider_info

    text = (ROOT / "docs" / "airflow.md").read_text()
    operators: tuple[type, ...] = (SpawnChildRunOperator, SpawnChildRunOperator.__mro__[1], AwaitChildRunOperator)
    arguments = {
        name
        for operator in operators
        for name, parameter in inspect.signature(inspect.unwrap(vars(operator)["__init__"])).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    options = get_provider_info()["config"]["childrun"]["options"]
    assert [name for name in arguments if f"`{name}`" not in text and f"({name}=" not in text] == []
    assert [name for name in options if f"| `{name}` |" not in text] == []
    for name in ("max_concurrency", "max_depth", "session_ttl_s", "xcom_max_bytes"):
        assert f"| `{name}` | {getattr(DEFAULTS, name)} |" in text


@pytest.mark.parametrize(("page", "passed"), [("store", 20), ("testing", 5)])
def test_the_test_file_of_a_page_passes(page: str, passed: int, tmp_path: Path) -> None:
    """The block in docs/store.md, and the one in docs/testing.md, is a test module that passes."""
    (block,) = (block for block in blocks(ROOT / "docs" / f"{page}.md") if block.kind == "python")
    module = tmp_path / f"test_{page}_of_ones_own.py"
    module.write_text(block.text)
    plugin = ["-p", "airflow_childrun.testing.plugin", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugin, "--rootdir", str(tmp_path), str(module)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = re.findall(r"(\d+) passed", done.stdout)
    assert int(found) >= passed


def test_the_readmes_install_line_names_a_committed_file() -> None:
    """For every Python that the package is made for there are constraints."""
    lines = re.findall(r"pip install -c (constraints/constraints-)\$\(.*?\)(\.txt)", README.read_text())
    named = {path.name for path in (ROOT / "constraints").iterdir()}
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    versions = [each.rpartition(" ")[2] for each in classifiers if re.fullmatch(r".*:: 3\.\d+", each)]
    assert lines == [("constraints/constraints-", ".txt")] * 2
    assert {f"constraints-{version}.txt" for version in versions} <= named
    assert importlib.metadata.version("apache-airflow").startswith("3.")


@pytest.mark.provider
def test_the_hook_does_what_the_guide_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The block in docs/airflow.md spawns, awaits and reads."""
    (block,) = (block for block in blocks(ROOT / "docs" / "airflow.md") if "ChildRunHook(" in block.text)
    (tmp_path / "guide_of_the_hook.py").write_text(block.text)
    monkeypatch.syspath_prepend(tmp_path)
    guide = importlib.import_module("guide_of_the_hook")
    with sqlite_connection(monkeypatch, tmp_path):
        assert guide.count_all(Ticket().context()) == (11, 0)


@pytest.fixture(scope="module")
def home(airflow_home: AirflowHome) -> AirflowHome:
    """Give an Airflow with a store."""
    done = airflow_home.childrun("init")
    assert done.status == 0, done.text
    return airflow_home


@pytest.mark.provider
@pytest.mark.slow
def test_the_readmes_dag_does_what_the_readme_says(home: AirflowHome) -> None:
    """The complete DAG runs, and what comes out has the fields that are shown."""
    dag, result = (block for block in blocks(README) if block.kind == "python")
    shown = ast.literal_eval(result.text)
    folder = home.path / "readme"
    folder.mkdir()
    print_keys = dag.text.replace(
        'print("words in all:"', 'print("CHILD", __import__("json").dumps(children[0])), print("words in all:"'
    )
    (folder / "readme.py").write_text(print_keys)
    done = home.airflow("dags", "test", "measure_texts", AIRFLOW__CORE__DAGS_FOLDER=str(folder))
    assert done.status == 0, done.text
    assert "words in all: 6" in done.text
    (line,) = re.findall(r"CHILD (\{.*\})", done.text)
    child = json.loads(line)
    assert set(child) == set(shown)
    assert {name: child[name] for name in shown if "…" not in str(shown[name])} == {
        name: value for name, value in shown.items() if "…" not in str(value)
    }


@pytest.mark.provider
@pytest.mark.slow
def test_a_durable_task_runs_as_the_guide_writes_it(home: AirflowHome) -> None:
    """The blocks in docs/airflow.md are one DAG file: two DAGs succeed, the first returns what its step returned."""
    pages = blocks(ROOT / "docs" / "airflow.md")
    dags = [block.text for block in pages if block.kind == "python" and "ChildRunHook(" not in block.text]
    folder = home.path / "guide"
    folder.mkdir()
    (folder / "guide.py").write_text("\n\n".join(dags))
    for dag_id in ("book_seats", "videos"):
        done = home.airflow("dags", "test", dag_id, AIRFLOW__CORE__DAGS_FOLDER=str(folder))
        assert done.status == 0, done.text
    shown = home.childrun("runs", "list", "--operation", "book", "--json")
    assert [json.loads(line)["status"] for line in shown.out.splitlines()] == ["Completed"]
