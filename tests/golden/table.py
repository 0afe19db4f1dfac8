"""The rows of the table that belong to single scenarios: exactly what differs there, and what ours shows instead.

Each block holds every line that :mod:`tests.golden.compare` finds, no fewer and no more: ``-`` what only the original did,
``+`` what only ours does, ``a -> b`` the original's value and ours. What differs by a general rule stands in ``rules``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A row of the table.

    :param about: what it is about, with the row of the specification's weaknesses
    :param scenarios: by name, the lines
    """

    about: str
    original: str
    ours: str
    scenarios: Mapping[str, str]


ROWS: tuple[Row, ...] = (
    Row(
        "row 29: a secret in a context",
        original="run open for ever",
        ours="StateFailed secrets_detected, run Failed",
        scenarios={
            "handler_writes_secret": r"""
                anew start: Context.Other secrets_detected (Context) -> Failed of root at *
                anew resume: Context.Other secrets_detected (Context) -> Failed of root at *
                anew root - StateEntered script.main.a 1 *
                anew root + StateFailed script.main.a {"info":{"category":"Context","code":"secrets_detected","details":null,"message":"(worded by the engine)","retryable":false},"state_id":"script.main.a"} null
                anew root + RunCompleted Failed *
            """,
        },
    ),
    Row(
        "floats are admitted (ARCHITECTURE 5)",
        original="refused",
        ours="accepted, recorded, and readable again",
        scenarios={
            "transport_answers_float": r"""
                anew start: Completed of root at * -> Completed of root at *
                anew root - StateCompleted script.main.a *
                anew root - RunCompleted Completed *
                anew root + fact k *
                anew root + StateCompleted script.main.a *
                anew root + RunCompleted Completed *
                anew root context script.main.e: {"code":"fact_payload_not_canonical","kind":"Other","retryable":false} -> absent
            """,
            "handler_writes_float": r"""
                anew start: Context.Serialization context_snapshot_not_canonical (Context) -> Completed of root at *
                anew resume: Context.Serialization context_snapshot_not_canonical (Context) -> Completed of root at *
                anew root - StateEntered script.main.a 1 *
                anew root + StateCompleted script.main.a *
                anew root + RunCompleted Completed *
                anew root context script.main.x: absent -> 1.5
            """,
            "initial_context_float": r"""
                anew start: Context.Serialization context_snapshot_not_canonical (Context) -> Completed of root at *
                anew root + RunStarted script * *
                anew root + StateEntered script.main.a 0 *
                anew root + StateCompleted script.main.a *
                anew root + RunCompleted Completed *
                anew root context script.main.x: absent -> 1.5
            """,
            "record_float": r"""
                anew start: Completed of root at * -> Completed of root at *
                anew root - StateCompleted script.main.a *
                anew root - RunCompleted Completed *
                anew root + fact f *
                anew root + StateCompleted script.main.a *
                anew root + RunCompleted Completed *
                anew root context script.main.e: {"code":"fact_payload_not_canonical","kind":"Other","retryable":false} -> absent
                anew root context script.main.id: absent -> "*"
            """,
            "child_float_in_config": r"""
                anew start: Completed of root at * -> Completed of root at *
                anew root - StateCompleted script.main.a *
                anew root - RunCompleted Completed *
                anew root + fact s *
                anew root + event child_run_spawned {"child_manifest_id":"*","child_run_id":"root/s","parent_run_id":"root"}
                anew root + StateCompleted script.main.a *
                anew root + RunCompleted Completed *
                anew root context script.main.e: {"code":"child_run_engine_failed","kind":"Other","retryable":false} -> absent
                anew root context script.main.h: absent -> {"child_manifest_id":"*","child_run_id":"root/s","parent_run_id":"root"}
                anew root/s + RunStarted script * *
                anew root/s + StateEntered script.main.a 0 *
                anew root/s + StateCompleted script.main.a *
                anew root/s + RunCompleted Completed *
                anew root/s context script.main.x: absent -> 1
            """,
        },
    ),
    Row(
        "row 13: a fact is bound to its request",
        original="silently the old answer",
        ours="an error",
        scenarios={
            "fact_same_key_other_request": r"""
                anew start: Completed of root at * -> Failed of root at *
                anew root - StateCompleted script.main.a *
                anew root - RunCompleted Completed *
                anew root + StateFailed script.main.a {"info":{"category":"Rpc","code":"fact_request_mismatch","details":null,"message":"io error Other","retryable":false},"state_id":"script.main.a"} null
                anew root + RunCompleted Failed *
                anew root context script.main.r1: {"echo":{"q":1}} -> absent
                anew root context script.main.r2: {"echo":{"q":1}} -> absent
            """,
            "child_spawned_twice_same_key": r"""
                anew start: Completed of root at * -> Failed of root at *
                anew root - fact w *
                anew root - event child_run_completed {"child_run_id":"root/s","final_snapshot_id":"*","status":"Completed"}
                anew root - StateCompleted script.main.a *
                anew root - RunCompleted Completed *
                anew root + StateFailed script.main.a {"info":{"category":"Rpc","code":"child_run_conflict","details":null,"message":"io error Other","retryable":false},"state_id":"script.main.a"} null
                anew root + RunCompleted Failed *
                anew root context script.main.h: {"child_manifest_id":"*","child_run_id":"root/s","parent_run_id":"root"} -> absent
                anew root context script.main.h2: {"child_manifest_id":"*","child_run_id":"root/s","parent_run_id":"root"} -> absent
                anew root context script.main.r: {"child_run_id":"root/s","final_snapshot":{"script.main.n":1,"script.main.s":{"sum":2}},"final_snapshot_id":"*","status":"Completed"} -> absent
            """,
            "record_and_look_up": r"""
                anew start: Completed of root at * -> Completed of root at *
                anew root - StateCompleted script.main.a *
                anew root - RunCompleted Completed *
                anew root + StateCompleted script.main.a *
                anew root + RunCompleted Completed *
                anew root context script.main.err: absent -> {"code":"fact_payload_conflict","kind":"Other","retryable":false}
                anew root context script.main.id2: "*" -> absent
            """,
        },
    ),
    Row(
        "row 2: a history that was resumed stays readable",
        original="its own history unreadable",
        ours="completes",
        scenarios={
            "resumed_twice": r"""
                anew resume_again: InvalidPlan invalid_attempt_envelopes (Unknown) -> Completed of root at *
                anew root + StateEntered script.main.a 2 *
                anew root + StateCompleted script.main.a *
                anew root + StateEntered script.main.b 0 *
                anew root + StateFailed script.main.b {"info":{"category":"OffChain","code":"scripted","details":null,"message":"scripted failure","retryable":true},"state_id":"script.main.b"} null
                anew root + StateEntered script.main.b 1 *
                anew root + StateCompleted script.main.b *
                anew root + RunCompleted Completed *
                anew root context script.main.r: absent -> {"echo":1}
                anew root context script.main.r2: absent -> {"echo":2}
                anew root context script.main.y: absent -> {"echo":1}
                imported resume_again: InvalidPlan invalid_attempt_envelopes (Unknown) -> Completed of root at *
                imported root + StateEntered script.main.a 2 *
                imported root + StateCompleted script.main.a *
                imported root + StateEntered script.main.b 0 *
                imported root + StateFailed script.main.b {"info":{"category":"OffChain","code":"scripted","details":null,"message":"scripted failure","retryable":true},"state_id":"script.main.b"} null
                imported root + StateEntered script.main.b 1 *
                imported root + StateCompleted script.main.b *
                imported root + RunCompleted Completed *
                imported root context script.main.r: absent -> {"echo":1}
                imported root context script.main.r2: absent -> {"echo":2}
                imported root context script.main.y: absent -> {"echo":1}
            """,
        },
    ),
    Row(
        "row 9: children spawn children",
        original="unknown namespace",
        ours="works",
        scenarios={
            "grandchild": r"""
                anew start: Completed of root at * -> Completed of root at *
                anew root - fact w *
                anew root - event child_run_completed {"child_run_id":"root/s","final_snapshot_id":"*","status":"Completed"}
                anew root - StateCompleted script.main.a *
                anew root - RunCompleted Completed *
                anew root + fact w *
                anew root + event child_run_completed {"child_run_id":"root/s","final_snapshot_id":"*","status":"Completed"}
                anew root + StateCompleted script.main.a *
                anew root + RunCompleted Completed *
                anew root context script.main.r: {"child_run_id":"root/s","final_snapshot":{"script.main.e":{"code":"io_unknown_namespace","kind":"Other","retryable":false}},"final_snapshot_id":"*","status":"Completed"} -> {"child_run_id":"root/s","final_snapshot":{"script.main.h":{"child_manifest_id":"*","child_run_id":"root/s/g","parent_run_id":"root/s"}},"final_snapshot_id":"*","status":"Completed"}
                anew root/s - StateCompleted script.main.a *
                anew root/s - RunCompleted Completed *
                anew root/s + fact g *
                anew root/s + event child_run_spawned {"child_manifest_id":"*","child_run_id":"root/s/g","parent_run_id":"root/s"}
                anew root/s + StateCompleted script.main.a *
                anew root/s + RunCompleted Completed *
                anew root/s context script.main.e: {"code":"io_unknown_namespace","kind":"Other","retryable":false} -> absent
                anew root/s context script.main.h: absent -> {"child_manifest_id":"*","child_run_id":"root/s/g","parent_run_id":"root/s"}
                anew root/s/g + RunStarted script * *
                anew root/s/g + StateEntered script.main.a 0 *
                anew root/s/g + fact sum *
                anew root/s/g + StateCompleted script.main.a *
                anew root/s/g + RunCompleted Completed *
                anew root/s/g context script.main.n: absent -> 1
                anew root/s/g context script.main.s: absent -> {"sum":2}
                anew + call at start by root/s/g script.main.a 0: world.sum sum [1,1]
            """,
        },
    ),
    Row(
        "row 31: plans are validated first",
        original="a stream is left, or the await fails",
        ours="refused at start or spawn, nothing stored",
        scenarios={
            "plan_cycle": r"""
                anew root - RunStarted script * *
            """,
            "child_bad_plan": r"""
                anew start: Completed of root at * -> Completed of root at *
                anew root - fact s *
                anew root - event child_run_spawned {"child_manifest_id":"*","child_run_id":"root/s","parent_run_id":"root"}
                anew root - StateCompleted script.main.a *
                anew root - RunCompleted Completed *
                anew root + StateCompleted script.main.a *
                anew root + RunCompleted Completed *
                anew root context script.main.e: absent -> {"code":"child_run_engine_failed","kind":"Other","retryable":false}
                anew root context script.main.e2: {"code":"child_run_task_failed","kind":"Other","retryable":false} -> "no_handle"
                anew root context script.main.h: {"child_manifest_id":"*","child_run_id":"root/s","parent_run_id":"root"} -> absent
                anew root/s - RunStarted script * *
            """,
            "child_fan_out_join": r"""
                anew start: Completed of root at * -> Completed of root at *
                anew root - fact s *
                anew root - event child_run_spawned {"child_manifest_id":"*","child_run_id":"root/s","parent_run_id":"root"}
                anew root - StateCompleted script.main.a *
                anew root - RunCompleted Completed *
                anew root + StateCompleted script.main.a *
                anew root + RunCompleted Completed *
                anew root context script.main.e: absent -> {"code":"child_run_engine_failed","kind":"Other","retryable":false}
                anew root context script.main.e2: {"code":"child_run_task_failed","kind":"Other","retryable":false} -> "no_handle"
                anew root context script.main.h: {"child_manifest_id":"*","child_run_id":"root/s","parent_run_id":"root"} -> absent
            """,
        },
    ),
    Row(
        "row 14: the initial context is part of the request",
        original="engine_failed",
        ours="request invalid",
        scenarios={
            "child_initial_context_not_object": r"""
                anew start: Completed of root at * -> Completed of root at *
                anew root - StateCompleted script.main.a *
                anew root - RunCompleted Completed *
                anew root + StateCompleted script.main.a *
                anew root + RunCompleted Completed *
                anew root context script.main.e: {"code":"child_run_engine_failed","kind":"Other","retryable":false} -> {"code":"child_run_request_invalid","kind":"Other","retryable":false}
            """,
        },
    ),
    Row(
        "row 14: the initial context is part of what a child is",
        original="not noticed",
        ours="conflict",
        scenarios={
            "spawned again with another initial context: the original does not see it": r"""
                answer 2: ok {"child_manifest_id":"*","child_run_id":"parent/k","parent_run_id":"parent"} -> Other child_run_conflict (Unknown)
            """,
        },
    ),
    Row(
        "row 18: the outcome of a child",
        original="task_failed",
        ours="its real outcome (a float is one)",
        scenarios={
            "child_writes_float": r"""
                anew start: Completed of root at * -> Completed of root at *
                anew root - StateCompleted script.main.a *
                anew root - RunCompleted Completed *
                anew root + fact w *
                anew root + event child_run_completed {"child_run_id":"root/s","final_snapshot_id":"*","status":"Completed"}
                anew root + fact w2 *
                anew root + event child_run_completed {"child_run_id":"root/s","final_snapshot_id":"*","status":"Completed"}
                anew root + StateCompleted script.main.a *
                anew root + RunCompleted Completed *
                anew root context script.main.e: {"code":"child_run_task_failed","kind":"Other","retryable":false} -> absent
                anew root context script.main.e2: {"code":"child_run_engine_failed","kind":"Other","retryable":false} -> absent
                anew root context script.main.r: absent -> {"child_run_id":"root/s","final_snapshot":{"script.main.x":1.5},"final_snapshot_id":"*","status":"Completed"}
                anew root context script.main.r2: absent -> {"child_run_id":"root/s","final_snapshot":{"script.main.x":1.5},"final_snapshot_id":"*","status":"Completed"}
                anew root/s - StateEntered script.main.a 1 *
                anew root/s + StateCompleted script.main.a *
                anew root/s + RunCompleted Completed *
                anew root/s context script.main.x: absent -> 1.5
            """,
        },
    ),
    Row(
        "an event with a secret",
        original="state error run_error with the recorder's text",
        ours="Failed too; code secrets_detected",
        scenarios={
            "secret_event": r"""
                anew root - StateFailed script.main.a {"info":{"category":"Rpc","code":"run_error","details":null,"message":"OthercategoryUnknowncodesecretsdetectedd","retryable":false},"state_id":"script.main.a"} null
                anew root + StateFailed script.main.a {"info":{"category":"Unknown","code":"secrets_detected","details":null,"message":"(worded by the engine)","retryable":false},"state_id":"script.main.a"} null
            """,
        },
    ),
    Row(
        "row 32: keys of time and randomness",
        original="keys hold the attempt",
        ours="keys do not",
        scenarios={
            "time_and_random": r"""
                anew root - fact mfm:now_millis|run:root|state:script.main.a|attempt:0|ord:0 *
                anew root - fact mfm:now_millis|run:root|state:script.main.a|attempt:0|ord:1 *
                anew root - fact mfm:random_bytes|run:root|state:script.main.a|attempt:0|ord:2 *
                anew root + fact mfm:now_millis|run:root|state:script.main.a|ord:0 *
                anew root + fact mfm:now_millis|run:root|state:script.main.a|ord:1 *
                anew root + fact mfm:random_bytes|run:root|state:script.main.a|ord:2 *
            """,
        },
    ),
)


def lines_of(name: str) -> tuple[str, list[str]] | None:
    """Return what the row of a scenario is about and the lines that it wants; None if no row names it."""
    for row in ROWS:
        if name in row.scenarios:
            return row.about, [line.strip() for line in row.scenarios[name].strip().splitlines()]
    return None
