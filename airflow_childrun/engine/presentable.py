"""What may be shown of something raised: its traceback, and no message that holds a secret."""

from __future__ import annotations

import traceback

from airflow_childrun.secret_policy import REDACTED_MESSAGE, SecretPolicy


def presentable(raised: BaseException, policy: SecretPolicy) -> BaseException:
    """Return what was raised, or a stand-in with the same traceback and causes in which no message holds a secret."""
    chain = _chain_of(raised)
    if not any(_is_secret(each, policy) for each in chain):
        return raised
    shown: BaseException | None = None
    for each in reversed(chain):
        text = REDACTED_MESSAGE if _is_secret(each, policy) else _message_of(each)
        above = RuntimeError(f"{type(each).__name__}: {text}").with_traceback(each.__traceback__)
        above.__cause__, shown = shown, above
    return shown or raised


def _chain_of(raised: BaseException) -> list[BaseException]:
    """Return what was raised and what it followed from, as a traceback would show them."""
    chain: list[BaseException] = []
    current: BaseException | None = raised
    while current is not None and all(current is not known for known in chain):
        chain.append(current)
        hidden = None if current.__suppress_context__ else current.__context__
        current = current.__cause__ or hidden
    return chain


def _is_secret(raised: BaseException, policy: SecretPolicy) -> bool:
    if isinstance(raised, BaseExceptionGroup) and any(
        _is_secret(each, policy) for inner in raised.exceptions for each in _chain_of(inner)
    ):
        return True
    return policy.is_secret_text(_message_of(raised))


def _message_of(raised: BaseException) -> str:
    """Return the last lines of a traceback: type, text and notes."""
    return "".join(traceback.format_exception_only(raised))
