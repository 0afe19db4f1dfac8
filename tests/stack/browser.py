"""What a person's browser does to Airflow: the public REST API v2, and nothing else."""

from __future__ import annotations

import threading
import time
from typing import Any

import httpx

OVER = {"success", "failed", "skipped", "upstream_failed", "removed"}
WAIT_S = 90.0


class Browser:
    """A user of one Airflow."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self._client = httpx.Client(base_url=f"{base_url}/api/v2", timeout=30)
        # Two dozen requests at once have taken Airflow's one API worker out of its 15 database connections, for good.
        self._hands = threading.BoundedSemaphore(4)

    def close(self) -> None:
        """Leave."""
        self._client.close()

    def get(self, path: str, **params: Any) -> Any:
        """Read something."""
        return self._request("GET", path, params=params)

    def post(self, path: str, body: Any) -> Any:
        """Do something."""
        return self._request("POST", path, json=body)

    def put(self, path: str) -> Any:
        """Do something that has no details."""
        return self._request("PUT", path)

    def _request(self, method: str, path: str, **kwargs: Any) -> Any:
        if "Authorization" not in self._client.headers:
            self._client.headers["Authorization"] = f"Bearer {self.token()}"
        with self._hands:
            answer = self._client.request(method, path, **kwargs)
        if answer.is_error:
            raise AssertionError(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json() if answer.content else None

    def token(self) -> str:
        """Return what proves who asks."""
        return str(httpx.get(f"{self.base_url}/auth/token", timeout=30).json()["access_token"])

    def dag_ids(self) -> set[str]:
        """Return the DAGs that Airflow knows."""
        return {dag["dag_id"] for dag in self.get("/dags", limit=200)["dags"]}

    def trigger(self, dag_id: str, run_id: str, conf: dict[str, Any] | None = None) -> None:
        """Start a DAG run."""
        self.post(f"/dags/{dag_id}/dagRuns", {"dag_run_id": run_id, "logical_date": None, "conf": conf or {}})

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return the state of a DAG run."""
        return str(self.get(f"/dags/{dag_id}/dagRuns/{run_id}")["state"])

    def wait_for_run(self, dag_id: str, run_id: str, timeout_s: float = WAIT_S, every_s: float = 0.1) -> str:
        """Wait until a DAG run is over, and return its state."""
        deadline = time.monotonic() + timeout_s
        while (state := self.run_state(dag_id, run_id)) not in ("success", "failed"):
            if time.monotonic() > deadline:
                raise AssertionError(f"{dag_id} {run_id} is {state} after {timeout_s} s: {self.tasks(dag_id, run_id)}")
            time.sleep(every_s)
        return state

    def delete_run(self, dag_id: str, run_id: str) -> None:
        """Delete a DAG run."""
        self._request("DELETE", f"/dags/{dag_id}/dagRuns/{run_id}")

    def mark_run(self, dag_id: str, run_id: str, state: str) -> None:
        """Mark a DAG run failed or a success, with its tasks."""
        self._request("PATCH", f"/dags/{dag_id}/dagRuns/{run_id}", json={"state": state})

    def task(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, Any]:
        """Return a task instance."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        found: dict[str, Any] = self.get(path if map_index < 0 else f"{path}/{map_index}")
        return found

    def tasks(self, dag_id: str, run_id: str) -> dict[str, str]:
        """Return the states of a run's tasks."""
        found = self.get(f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances")["task_instances"]
        return {f"{ti['task_id']}[{ti['map_index']}]": f"{ti['state']} try {ti['try_number']}" for ti in found}

    def wait_for_task(
        self, dag_id: str, run_id: str, task_id: str, *states: str, least_try: int = 0, timeout_s: float = WAIT_S
    ) -> dict[str, Any]:
        """Wait until a task is in one of some states (by default: over), in a certain try at least."""
        deadline = time.monotonic() + timeout_s
        while True:
            task = self.task(dag_id, run_id, task_id)
            if task["state"] in (states or OVER) and task["try_number"] >= least_try:
                return task
            if time.monotonic() > deadline:
                raise AssertionError(f"{task_id} is {task['state']} in try {task['try_number']} after {timeout_s} s")
            time.sleep(0.1)

    def clear(self, dag_id: str, run_id: str, *task_ids: str, **options: Any) -> None:
        """Clear tasks of a run, as the button does."""
        body = {"dry_run": False, "only_failed": False, "dag_run_id": run_id, "task_ids": list(task_ids), **options}
        self.post(f"/dags/{dag_id}/clearTaskInstances", body)

    def clear_run(self, dag_id: str, run_id: str) -> None:
        """Clear a whole DAG run, as the button does."""
        self.post(f"/dags/{dag_id}/dagRuns/{run_id}/clear", {"dry_run": False, "only_failed": False})

    def pause(self, dag_id: str, *, paused: bool) -> None:
        """Pause a DAG, or let it run."""
        self._request("PATCH", f"/dags/{dag_id}", json={"is_paused": paused})

    def run_ids(self, dag_id: str) -> list[str]:
        """Return the DAG runs of a DAG."""
        return [run["dag_run_id"] for run in self.get(f"/dags/{dag_id}/dagRuns")["dag_runs"]]

    def mark(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """Mark a task failed or a success."""
        self._request("PATCH", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}", json={"new_state": state})

    def xcom(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> Any:
        """Return what a task returned."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value"
        return self.get(path, map_index=map_index, deserialize=True)["value"]

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int) -> str:
        """Return a task's log as a person reads it: one line per record, a traceback below it."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        lines = []
        for record in self.get(path, full_content=True)["content"]:
            if isinstance(record, str):
                lines.append(record)
                continue
            known = ("timestamp", "event", "level", "logger", "filename", "lineno", "error_detail", "sources")
            rest = " ".join(f"{name}={value}" for name, value in record.items() if name not in known)
            lines.append(f"{record.get('level', ''):7} {record['event']} {rest}".rstrip())
            for error in record.get("error_detail") or ():
                lines += [f"    {frame['name']} {frame['filename']}:{frame['lineno']}" for frame in error["frames"]]
                lines.append(f"    {error['exc_type']}: {error['exc_value']}")
        return "\n".join(lines)
