"""The docstrings of public names say what each argument means."""

import enum
import importlib
import inspect
import re

import pytest

from fusedstep.docstrings import describes, filled
from fusedstep.optim import InZero
from fusedstep.schedules import SchedulerType, named

# Nobody makes these: the members of an enum are there, and an optimizer becomes an InZero.
NOT_MADE = (enum.Enum, InZero)
PACKAGES = ["optim", "hf", "schedules", "schedules.formulas", "frameworks", "config"]


def public(package):
    """The classes and functions that a user of the package finds."""
    module = importlib.import_module(f"fusedstep.{package}")
    own = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    found = {name: getattr(module, name) for name in own}
    return {
        name: value
        for name, value in found.items()
        if callable(value) and not (isinstance(value, type) and issubclass(value, NOT_MADE))
    }


NAMES = {
    f"{package}.{name}": value for package in PACKAGES for name, value in public(package).items()
}


def undescribed(described):
    text = inspect.getdoc(described) or ""
    known = re.findall(r"^    (\w+(?:, \w+)*): \S", text, re.MULTILINE)
    names = {name for entry in known for name in entry.split(", ")}
    return [name for name in inspect.signature(described).parameters if name not in names]


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_is_described(name):
    assert undescribed(NAMES[name]) == []


def test_a_missing_entry_is_found():
    def half(first, second):
        """One.

        Arguments:
            first: of two.
        """

    assert undescribed(half) == ["second"]


def test_entries_stand_in_the_order_of_the_signature_and_own_ones_stay():
    @describes({"a": "shared.", "b": "shared.", "c": "shared.", "e": "of nobody."})
    def function(a, b, c, d):
        """Does it.

        Arguments:
            d: own,
                in two lines.
            b, c: own.

        Example:
            >>> 1
        """

    section = function.__doc__.split("\nArguments:\n")[1].split("\nExample")[0]
    assert section.splitlines() == [
        "    a: shared.",
        "    b, c: own.",
        "    d: own,",
        "        in two lines.",
    ]
    assert function.__doc__.endswith("Example:\n    >>> 1")


def test_a_docstring_without_entries_stays():
    text = "Does it.\n\nExample:\n    >>> 1"
    assert filled(text, [], {}) == text


def test_an_entry_on_something_that_is_no_argument_is_an_error():
    with pytest.raises(ValueError, match="describes 'b', which is no argument"):
        filled("Does it.\n\nArguments:\n    b: what?\n\nExample:\n    >>> 1", ["a"], {})


def test_the_types_of_schedules_names_are_all_names():
    names = {*named.MetricName.__args__, *named.StepName.__args__}
    assert names == {kind.value for kind in SchedulerType}
    assert {*named.MetricName.__args__} == {kind.value for kind in named.FOLLOW_A_METRIC}
