"""The tables of names: every line leads to a class; a typo or a missing package is said clearly."""

from __future__ import annotations

import inspect

import pytest

from safe_o2o import catalog
from safe_o2o.cli import list_
from safe_o2o.errors import MissingDependencyError, UnknownNameError

LINES = [(kind, name) for kind, table in catalog.TABLES.items() for name in table]


@pytest.mark.parametrize(("kind", "name"), LINES)
def test_every_line_leads_to_a_documented_class(kind: str, name: str) -> None:
    found = catalog.load(kind, name)
    assert inspect.isclass(found)
    first = (inspect.getdoc(found) or "").partition("\n")[0]
    assert len(first) > 10, f"{found} says nothing about itself"
    assert list_.describe(catalog.TABLES[kind][name]) == first


@pytest.mark.parametrize(("kind", "name"), LINES)
def test_names_are_spelled_one_way(kind: str, name: str) -> None:
    assert name == name.lower().replace("-", "_") and name.isidentifier()


def test_dashes_and_underscores_are_the_same() -> None:
    assert catalog.load("task", "safe-reach") is catalog.load("task", "safe_reach")


def test_a_typo_names_the_near_miss() -> None:
    with pytest.raises(UnknownNameError, match="unknown algorithm 'fops'; did you mean 'fosp'"):
        catalog.load("algorithm", "fops")
    with pytest.raises(UnknownNameError, match="known: "):
        catalog.load("robot", "zzzzz")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalog.robots, "lost", "package_that_is_not_there.robot:Robot")
    with pytest.raises(MissingDependencyError, match="package_that_is_not_there"):
        catalog.load("robot", "lost")


def test_a_broken_module_of_ours_is_our_mistake_and_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(catalog.robots, "broken", "safe_o2o.no_such_module:Robot")
    with pytest.raises(ModuleNotFoundError):
        catalog.load("robot", "broken")
