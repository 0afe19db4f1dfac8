"""Airflow's REST API, for what a task may not do with DAG runs over its own channel: end them, clear part of them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from airflow_childrun._airflow import AirflowNotFoundException, BaseHook
from airflow_childrun.canonical import canonical_json_bytes
from airflow_childrun.errors import HostError

TIMEOUT_S = 30
CLIENT_ERRORS = range(400, 500)
NOT_FOUND, TOO_MANY = 404, 429


class AirflowApi:
    """The API of the Airflow that a connection names, on behalf of the user whose login it holds.

    :param conn_id: host (or a whole URL there) and port of the API server, ``https`` or ``http`` in the schema, login and
        password of a user; without a login, the password is a token
    """

    def __init__(self, conn_id: str) -> None:
        self._conn_id = conn_id
        try:
            conn = BaseHook.get_connection(conn_id)
        except AirflowNotFoundException:
            raise HostError(
                f"the connection {conn_id!r} of airflow_api_conn_id does not exist; make one with the address of Airflow's "
                "API server and a user's login",
                code="api_connection_invalid",
            ) from None
        self._url = _url_of(conn_id, conn.host, conn.port, conn.schema)
        self._login, self._password = conn.login, conn.password

    def fail_dag_run(self, dag_id: str, run_id: str) -> bool:
        """Set a DAG run to failed, which ends its tasks; False if there is none.

        :raises HostError: codes ``api_refused``, ``airflow_unavailable``
        """
        return self._change("PATCH", _path(dag_id, run_id), {"state": "failed"})

    def clear_failed(self, dag_id: str, run_id: str) -> bool:
        """Clear what failed in a DAG run, so that it goes on; False if there is none.

        :raises HostError: codes ``api_refused``, ``airflow_unavailable``
        """
        return self._change("POST", f"{_path(dag_id, run_id)}/clear", {"dry_run": False, "only_failed": True})

    def _change(self, method: str, path: str, body: Mapping[str, Any]) -> bool:
        token = self._token()
        try:
            self._ask(method, path, body, {"Authorization": f"Bearer {token}"})
        except HostError as error:
            if error.info.details == {"status": NOT_FOUND}:
                return False
            raise
        return True

    def _token(self) -> str:
        if not self._login:
            return self._password or ""
        answer = self._ask("POST", "/auth/token", {"username": self._login, "password": self._password or ""}, {})
        return str(answer["access_token"])

    def _ask(self, method: str, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Any:
        request = urllib.request.Request(  # noqa: S310 - _url_of lets http and https through
            self._url + path,
            data=canonical_json_bytes(dict(body)),
            headers={"Content-Type": "application/json", **headers},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            error.close()
            raise self._refusal(error.code, method, path) from None
        except (OSError, ValueError) as error:
            raise HostError(
                f"Airflow's API at {self._url} (connection {self._conn_id!r}) does not answer: {type(error).__name__}",
                code="airflow_unavailable",
                retryable=True,
            ) from None

    def _refusal(self, status: int, method: str, path: str) -> HostError:
        is_final = status in CLIENT_ERRORS and status != TOO_MANY
        return HostError(
            f"Airflow's API answers {method} {path} with {status}: may the user of the connection {self._conn_id!r} change "
            "DAG runs?",
            code="api_refused" if is_final else "airflow_unavailable",
            retryable=not is_final,
            details={"status": status},
        )


def _path(dag_id: str, run_id: str) -> str:
    return f"/api/v2/dags/{quote(dag_id, safe='')}/dagRuns/{quote(run_id, safe='')}"


def _url_of(conn_id: str, host: str | None, port: int | None, scheme: str | None) -> str:
    url = host or ""
    if "://" not in url:
        url = f"{scheme or 'http'}://{url}"
    found = urlsplit(url)
    if not found.hostname or found.scheme not in ("http", "https"):
        raise HostError(
            f"the connection {conn_id!r} of airflow_api_conn_id names no API server: its host is {host!r}, its schema "
            f"{scheme!r}; the schema is http or https",
            code="api_connection_invalid",
        )
    return url.rstrip("/") + (f":{port}" if port and found.port is None else "")
