"""What users may import from the root is a decision, not an accident."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import airflow_childrun

ROOT = Path(__file__).parents[2]

# Adding a name is a minor release, removing or renaming one a major release.
PUBLIC = [
    "AwaitChildRunOperator",
    "ChildRunHook",
    "Operation",
    "RunFilter",
    "SpawnChildRunOperator",
    "SpawnOrder",
    "__version__",
    "childrun_maintenance_dag",
    "childrun_runner_dag",
    "operation",
]


def test_the_root_exports_exactly_these_names() -> None:
    """A name enters or leaves the public API only together with the list above."""
    assert sorted(airflow_childrun.__all__) == PUBLIC
    assert set(PUBLIC) <= set(dir(airflow_childrun))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_can_be_imported(name: str) -> None:
    """Each name resolves to something that says what it is."""
    thing = getattr(airflow_childrun, name)
    assert isinstance(thing, str) or thing.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    """The lazy root behaves as a module does: ``hasattr`` and ``from ... import`` work on it."""
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = airflow_childrun.Nothing  # type: ignore[attr-defined, unused-ignore]


def test_the_changelog_speaks_of_this_version() -> None:
    """The newest section is Unreleased or this version, and says what became of the wire format."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    assert airflow_childrun.__version__ in versions[:2]
    for section in re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]:
        assert "### Wire format" in section, section.splitlines()[0]
