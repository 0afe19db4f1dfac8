"""DAG files that change while their DAG runs run: written from a template, and read by the next process that parses them."""

from __future__ import annotations

from pathlib import Path

from tests.stack.stand import Stand
from tests.stack.test_fate import wait_until

_FILE = """
from __future__ import annotations

import json, os, time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from airflow.sdk import DAG, task

from airflow_childrun import AwaitChildRunOperator, Operation, SpawnChildRunOperator


def ask(key: str) -> str:
    with urlopen(f"{{os.environ['CHILDRUN_WITNESS']}}/call/{{key}}?pid={{os.getpid()}}") as answer:
        return str(json.load(answer)["key"])


@task(retries=0)
def opened(name: str) -> None:
    while not (Path(os.environ["CHILDRUN_STAND"]) / "flags" / f"open_{{name}}").exists():
        time.sleep(0.2)

{operations}

with DAG("{dag_id}", schedule=None):
    spawn = SpawnChildRunOperator(
        task_id="spawn", op_id="changing", op_version="{spawned}", inputs=["a"], retries={retries}, retry_delay=1, {options}
    )
{tail}
"""
_OPERATION = """
op_{number} = Operation("changing", version="{version}")


@op_{number}.state
def {state}(io: Any, item: str) -> str:
    ask_for = f"{{io.airflow['run_id']}}/{{item}}"
    io.step(ask, f"{{ask_for}}/first", key="first")
    return item


@op_{number}.state
def last(io: Any, {state}: str) -> str:
    io.step(ask, f"{{io.airflow['run_id']}}/{{{state}}}/second", key="second")
    return f"{{{state}}} {text}"
"""
_AWAIT = (
    '    spawn >> opened("{{ run_id }}") >> AwaitChildRunOperator(task_id="await", child_runs=spawn.output, retries=0)'
)


class ChangingFile:
    """One DAG file with an operation ``changing`` of two states, each of which asks the witness once.

    :param apart: whether the spawn does not wait, and an await comes once :meth:`open` was called
    """

    def __init__(
        self,
        stand: Stand,
        dag_id: str,
        *,
        apart: bool = False,
        folder: Path | None = None,
        options: str = "",
        retries: int = 3,
    ) -> None:
        self._stand = stand
        self.dag_id = dag_id
        self._apart = apart
        self._options = "wait_for_completion=False" if apart else options
        self._retries = retries
        self._path = (folder or stand.home / "dags") / f"{dag_id}.py"

    def write(self, text: str, *, state: str = "begin", versions: tuple[str, ...] = ("1",)) -> None:
        """Write the file.

        :param text: what the code of the last state says
        :param state: the name of the first state
        :param versions: of the operation, the last of which is spawned
        """
        operations = "".join(
            _OPERATION.format(
                number=number,
                version=version,
                state=state,
                text=text if version == versions[-1] else f"{text} {version}",
            )
            for number, version in enumerate(versions)
        )
        source = _FILE.format(
            operations=operations,
            dag_id=self.dag_id,
            spawned=versions[-1],
            options=self._options,
            retries=self._retries,
            tail=_AWAIT if self._apart else "",
        )
        # In one step: somebody may be reading it.
        new = self._path.with_suffix(".new")
        new.write_text(source)
        new.replace(self._path)

    def wait_until_known(self) -> None:
        """Wait until Airflow can run it."""
        wait_until(lambda: self.dag_id in self._stand.browser.dag_ids(), f"{self.dag_id} is known", 60)

    def open(self, run_id: str) -> None:
        """Let the await come."""
        (self._stand.home / "flags" / f"open_{run_id}").touch()
