"""A task instance as the parent of child runs: tries, clears, generations, stale and re-created ones."""

from __future__ import annotations

from tests.host.kit import AirflowTask, HostLab, outputs, returning, statuses


def put_double(lab: HostLab) -> None:
    lab.put("double", returning(lambda stage: stage.ask(f"ask {stage.input}")["echo"] or stage.input * 2))


def test_a_try_spawns_and_awaits(lab: HostLab) -> None:
    put_double(lab)
    found = lab.begin(AirflowTask()).run(lab.wanted("double", [1, 2, 3]))
    assert outputs(found) == [2, 4, 6]
    assert statuses(found) == ["Completed"] * 3
