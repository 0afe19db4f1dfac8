"""The maintenance DAG: sweeps up runs that nobody owns, and deletes trees that are over, on a schedule."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow_childrun._airflow import DAG, BaseOperator, Context, channel_is_shared, registered_secrets
from airflow_childrun.hooks.connection import open_store, read_store_settings
from airflow_childrun.hooks.dag_runs import DAG_RUN_OVER_API
from airflow_childrun.hooks.maintenance import AirflowOfTask, purge, read_age, recover
from airflow_childrun.hooks.settings import DEFAULT_CONN_ID, read_settings
from airflow_childrun.secret_policy import standard, strict

SHOWN = 20
REACHABLE = (DAG_RUN_OVER_API,)
"""Declared by being imported: DAG runs as children, whose clean-up marks the DAG run failed."""


class RecoverChildRunsOperator(BaseOperator):
    """Do what ``childrun recover`` does, asking Airflow as a task may.

    Operations that the DAG's file imports are known to it. Returns ``{ended, in_grace, awaited, left, unreachable}``.

    :param childrun_conn_id: connection of type ``childrun``
    """

    def __init__(self, *, childrun_conn_id: str = DEFAULT_CONN_ID, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.childrun_conn_id = childrun_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Sweep once."""
        settings, place = read_settings(), read_store_settings(self.childrun_conn_id)
        policy = strict() if settings.preset == "strict" else standard(registered_secrets)
        found = recover(
            open_store(place),
            settings,
            policy,
            AirflowOfTask(context["ti"]),
            place.deployment_id,
            dag_file=getattr(self.dag, "fileloc", None),
            one_at_a_time=channel_is_shared(),
        )
        for run_id, why in list(found.left.items())[:SHOWN]:
            self.log.warning("child run %s is left: %s", run_id, why)
        if found.unreachable:
            self.log.warning(
                "operations that this DAG does not know: %s. Import them in its file", ", ".join(found.unreachable)
            )
        self.log.info(
            "child runs that nobody owned: %d ended, %d in their grace, %d awaited by an active task, %d left",
            len(found.ended),
            len(found.in_grace),
            len(found.awaited),
            len(found.left),
        )
        counted = {name: len(found.to_json()[name]) for name in ("ended", "in_grace", "awaited", "left")}
        return {**counted, "unreachable": sorted(found.unreachable)}


class PurgeChildRunsOperator(BaseOperator):
    """Do what ``childrun purge`` does. Returns ``{old, orphaned}``: how many trees it deleted.

    :param older_than: delete trees in which nothing has happened for this long, such as ``30d``; None keeps them
    :param orphaned_after: delete trees whose DAG run is gone once they are idle for this long; None keeps them
    :param childrun_conn_id: connection of type ``childrun``
    """

    def __init__(
        self,
        *,
        older_than: str | None = "30d",
        orphaned_after: str | None = "1d",
        childrun_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for age in filter(None, (older_than, orphaned_after)):
            read_age(age)
        self.older_than = older_than
        self.orphaned_after = orphaned_after
        self.childrun_conn_id = childrun_conn_id

    def execute(self, context: Context) -> dict[str, int]:
        """Delete what is over."""
        place = read_store_settings(self.childrun_conn_id)
        store, deleted = open_store(place), {"old": 0, "orphaned": 0}
        if self.orphaned_after:
            orphans = (AirflowOfTask(context["ti"]), place.deployment_id)
            deleted["orphaned"] = purge(store, older_than_s=read_age(self.orphaned_after), orphans=orphans).trees
        if self.older_than:
            deleted["old"] = purge(store, older_than_s=read_age(self.older_than)).trees
        self.log.info("trees of child runs deleted: %(orphaned)d whose DAG run is gone, %(old)d that were old", deleted)
        return deleted


def childrun_maintenance_dag(
    dag_id: str = "childrun_maintenance",
    *,
    schedule: Any = "*/15 * * * *",
    older_than: str | None = "30d",
    orphaned_after: str | None = "1d",
    childrun_conn_id: str = DEFAULT_CONN_ID,
    **dag_arguments: Any,
) -> DAG:
    """Return a DAG that sweeps up child runs which nobody owns, then deletes trees that are over.

    Nothing depends on it: it tidies up what waits for the next try, clear or ``childrun recover`` otherwise.

    :param older_than: delete trees in which nothing has happened for this long; None keeps them
    :param orphaned_after: delete trees whose DAG run was deleted, once they are idle for this long; None keeps them
    :param dag_arguments: any argument of :class:`airflow.sdk.DAG`
    """
    given = {"start_date": datetime(2025, 1, 1, tzinfo=UTC), "catchup": False, "max_active_runs": 1, **dag_arguments}
    with DAG(dag_id, schedule=schedule, **given) as dag:
        recovered = RecoverChildRunsOperator(task_id="recover", childrun_conn_id=childrun_conn_id)
        purged = PurgeChildRunsOperator(
            task_id="purge", older_than=older_than, orphaned_after=orphaned_after, childrun_conn_id=childrun_conn_id
        )
        recovered >> purged  # a sweep that fails leaves nothing that purging would harm, but is to be seen
    return dag
