"""The section ``[childrun]`` of Airflow's configuration: names, defaults, and how they are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from airflow_childrun.errors import HostError, InputError

SECTION = "childrun"
DEFAULT_CONN_ID = "childrun_default"

SecretPreset = Literal["standard", "strict"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What ``[childrun]`` says.

    :param operations_modules: modules that define operations, imported where a run is driven
    :param preset: option ``secret_policy``: what may not be recorded
    :param max_concurrency: how many inline children of one task run at the same time
    :param max_depth: how deep runs may be nested
    :param session_ttl_s: after how many seconds without a sign of life a process counts as dead
    :param metadata_tables: whether ``airflow db migrate`` makes our tables in Airflow's metadata database
    :param xcom_max_bytes: how large the results of one task may be in XCom
    """

    operations_modules: tuple[str, ...] = ()
    preset: SecretPreset = "standard"
    max_concurrency: int = 16
    max_depth: int = 50
    session_ttl_s: int = 60
    metadata_tables: bool = False
    xcom_max_bytes: int = 1024 * 1024


DEFAULTS = Settings()


def read_settings() -> Settings:
    """Return what ``[childrun]`` says in this process.

    :raises HostError: code ``config_invalid``, naming the option, its value and what it takes
    """
    from airflow_childrun._airflow import conf

    def text(option: str) -> str:
        # A task process loads the defaults of providers late or never.
        return str(conf.get(SECTION, option, fallback="") or "").strip()

    def number(option: str, least: int, default: int) -> int:
        parse: Callable[[str], int] = lambda value: _at_least(int(value), least)  # noqa: E731
        return int(_parse(option, text(option), default, parse, f"an integer >= {least}"))

    return Settings(
        operations_modules=tuple(name.strip() for name in text("operations_modules").split(",") if name.strip()),
        preset=_parse("secret_policy", text("secret_policy"), DEFAULTS.preset, _preset, "'standard' or 'strict'"),
        max_concurrency=number("max_concurrency", 1, DEFAULTS.max_concurrency),
        max_depth=number("max_depth", 1, DEFAULTS.max_depth),
        session_ttl_s=number("session_ttl_s", 5, DEFAULTS.session_ttl_s),
        metadata_tables=_parse(
            "metadata_tables", text("metadata_tables"), DEFAULTS.metadata_tables, _boolean, "'True' or 'False'"
        ),
        xcom_max_bytes=number("xcom_max_bytes", 1, DEFAULTS.xcom_max_bytes),
    )


def check_max_concurrency(value: Any) -> None:
    """Refuse what is no number of children; None stands for ``[childrun] max_concurrency``.

    :raises InputError: code ``argument_invalid``
    """
    if value is not None and (not isinstance(value, int) or value < 1):
        raise InputError(f"max_concurrency is {value!r}; it takes an integer >= 1", code="argument_invalid")


def _parse(option: str, text: str, default: Any, parse: Callable[[str], Any], takes: str) -> Any:
    if not text:
        return default
    try:
        return parse(text)
    except ValueError:
        raise HostError(
            f"[{SECTION}] {option} = {text!r} in Airflow's configuration: it takes {takes}", code="config_invalid"
        ) from None


def _at_least(value: int, least: int) -> int:
    if value < least:
        raise ValueError
    return value


def _preset(text: str) -> str:
    if text not in {"standard", "strict"}:
        raise ValueError
    return text


def _boolean(text: str) -> bool:
    values = {"true": True, "t": True, "1": True, "yes": True, "false": False, "f": False, "0": False, "no": False}
    if text.lower() not in values:
        raise ValueError
    return values[text.lower()]
