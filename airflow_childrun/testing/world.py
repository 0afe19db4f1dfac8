"""The world outside, as a test wants it: fakes of steps and namespaces, and every call that reached it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from airflow_childrun.testing.watched_io import Entry


@dataclass(frozen=True, slots=True)
class Call:
    """A call that reached the world.

    :param name: of the step's function, or of the namespace
    :param key: under which the answer is recorded; None for a raw call without one
    """

    name: str
    key: str | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    run_id: UUID | None = None


class _Fake:
    """Answers in place of a function or a namespace."""

    def __init__(self, name: str, answers: Sequence[Any] | None, answer: Any) -> None:
        self._name = name
        self._answers = answers
        self._answer = answer
        self._left = list(answers or ())
        self._last: list[Any] = []

    def rewind(self) -> None:
        """Begin with the first answer again."""
        self._left = list(self._answers or ())

    def take_back(self) -> None:
        """Give the last answer once more: it never arrived."""
        self._left = self._last + self._left
        self._last = []

    def answer(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Answer a call."""
        step = self._answer
        if self._answers is not None:
            if not self._left:
                raise AssertionError(
                    f"the fake of {self._name!r} has {len(self._answers)} answers and was asked once more; give it "
                    "another one, or one that always holds"
                )
            step = self._left.pop(0)
            self._last = [step]
        if isinstance(step, BaseException) or (isinstance(step, type) and issubclass(step, BaseException)):
            raise step
        return step(*args, **kwargs) if callable(step) else deepcopy(step)


class World:
    """What stands behind steps and namespaces."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._last: _Fake | None = None
        self._by_function: list[tuple[Callable[..., Any], _Fake]] = []
        self._by_name: dict[str, _Fake] = {}

    @property
    def namespaces(self) -> list[str]:
        """The names that were faked as such."""
        return list(self._by_name)

    def fake(self, target: Callable[..., Any] | str, answers: Sequence[Any] | None, answer: Any) -> None:
        """Answer for a step's function or a namespace from now on."""
        if isinstance(target, str):
            self._by_name[target] = _Fake(target, answers, answer)
            return
        name = getattr(target, "__name__", repr(target))
        self._by_function = [(known, fake) for known, fake in self._by_function if known != target]
        self._by_function.append((target, _Fake(name, answers, answer)))

    def rewind(self) -> None:
        """Forget calls, and begin with every fake's first answer again."""
        self.calls.clear()
        for fake in (*self._by_name.values(), *(fake for _, fake in self._by_function)):
            fake.rewind()

    def answer(
        self,
        entry: Entry | None,
        name: str,
        key: str | None,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Count a call and answer it: by a fake, or by the function itself."""
        self.calls.append(Call(name, key, args, dict(kwargs), entry.run_id if entry else None))
        fake = next((fake for known, fake in self._by_function if known == function), None) or self._fake_of(name)
        self._last = fake
        return function(*args, **kwargs) if fake is None else fake.answer(args, kwargs)

    def take_back(self) -> None:
        """Have the last answer be given once more: it was lost on its way, and the world knows the call by its token."""
        if self._last is not None:
            self._last.take_back()

    def _fake_of(self, name: str) -> _Fake | None:
        """Return the fake of the longest name that serves a namespace: ``proof`` serves ``proof.*``, too."""
        parts = name.split(".")
        names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        return next((self._by_name[known] for known in names if known in self._by_name), None)
