"""A rule that cannot be printed is refused, with the rule, the file and the line. A row of scalars
that misses one is refused too."""

import linecache
import subprocess
import sys
import textwrap

import pytest

from fusedstep import rules
from fusedstep.emit import rules as emitted
from fusedstep.emit.__main__ import headers
from fusedstep.rules import RULES, Rule, RuleError

STRAIGHT = "p = p - rate * g\n    return (p,)"
WRONG = {
    "a branch": ("if g > 0.0:\n        p = p - g\n    return (p,)", 2, "a branch"),
    "a conditional expression": (
        "p = g if g > 0.0 else p\n    return (p,)",
        2,
        "a branch: use where",
    ),
    "a loop": ("for _ in range(2):\n        p = p - g\n    return (p,)", 2, "a loop"),
    "a loop until": ("while p > g:\n        p = p - g\n    return (p,)", 2, "a loop"),
    "an augmented assignment": ("p -= g\n    return (p,)", 2, "an augmented assignment"),
    "a power": ("p = p - g**2\n    return (p,)", 2, "a power"),
    "a plain division": ("p = p - g / rate\n    return (p,)", 2, "a plain division: write div"),
    "a chained comparison": (
        "p = p - g\n    p = where(0.0 < g < 1.0, g, p)\n    return (p,)",
        3,
        "a chained comparison",
    ),
    "a comparison of identity": (
        "p = where(g is p, g, p)\n    return (p,)",
        2,
        "a comparison is one",
    ),
    "a logical operation": (
        "p = where(g > 0.0 and p > 0.0, g, p)\n    return (p,)",
        2,
        "the first argument of where|no arithmetic",
    ),
    "a named condition": ("c = g > 0.0\n    return (p,)", 2, "a condition has no name"),
    "a condition as a number": (
        "p = p * (g > 0.0)\n    return (p,)",
        2,
        "where a number is wanted",
    ),
    "a number as a condition": ("p = where(g, p, g)\n    return (p,)", 2, "is a comparison"),
    "an unknown operation": ("p = p - exp(g)\n    return (p,)", 2, "an unknown operation 'exp'"),
    "a method": ("p = p - g.abs()\n    return (p,)", 2, "an unknown operation: g.abs"),
    "a keyword": ("p = maximum(p, b=g)\n    return (p,)", 2, "not with keywords"),
    "an argument too few": ("p = maximum(p)\n    return (p,)", 2, "takes 2 arguments and gets 1"),
    "an unknown name": ("p = p - rat * g\n    return (p,)", 2, "'rat' is no argument"),
    "a name before its time": (
        "p = p - u\n    u = g * g\n    return (p,)",
        2,
        "'u' is no argument",
    ),
    "a word of C++": ("new = p - g\n    p = new\n    return (p,)", 2, "'new' is a word of C"),
    "two names at once": ("p = q = g\n    return (p,)", 2, "one name on its left"),
    "a text": (
        "p = p - g\n    'and so on' < p\n    p = 'x'\n    return (p,)",
        4,
        "'x' is no number",
    ),
    "too large a number": ("p = p - 1e39 * g\n    return (p,)", 2, "more than float32 holds"),
    "scalars alone": ("p = p - (1.0 - rate) * g\n    return (p,)", 2, "scalars and literals alone"),
    "a root of a scalar": ("p = p - sqrt(rate) * g\n    return (p,)", 2, "scalars and literals"),
    "an expression returned": ("return (p - g,)", 2, "holds names alone"),
    "another name returned": ("u = p - g\n    return (u,)", 3, "the update returns p"),
    "one name too many": ("return p, g", 2, "the update returns p"),
    "nothing returned": ("p = p - g", 2, "the last line of a text is a return"),
}
HEAD = "def new(p, g, rate):\n    "


def made(source, name="new", file="<new>", **more):
    """A rule with this source, which has a file name and line numbers."""
    names = {}
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec("from fusedstep.rules.numbers import *", names)
    exec(compile(source, file, "exec"), names)
    return Rule(name, (), ("rate",), (names[name],), **more)


def header(monkeypatch, *new):
    for rule in new:
        monkeypatch.setitem(emitted.RULES, rule.name, rule)
    return "".join(emitted.rules_headers().values())


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_straight_arithmetic_is_refused_with_its_line(what, monkeypatch):
    body, line, why = WRONG[what]
    with pytest.raises(RuleError, match=rf"rule 'new', <new>:{line}: new: .*({why})"):
        header(monkeypatch, made(f"{HEAD}{body}\n"))


def test_a_straight_text_is_printed(monkeypatch):
    text = header(monkeypatch, made(f"{HEAD}{STRAIGHT}\n"))
    assert "void update(T& p, T g) const {\n    p = p - rate * g;\n  }" in text
    assert "using ElementwiseRules = RuleList<kAccumulate, " in text
    assert "kNew>;" in text and '{"new", 0, false},' in text


SHARED = """
def halved(x, y):
    half = 0.5 * x
    return where(x > y, half, x)


def is_larger(x, y):
    return x > y


def new(p, g, rate):
    p = where(is_larger(p, g), halved(p, rate), g)
    return (p,)
"""


def test_a_text_may_call_texts(monkeypatch):
    text = header(monkeypatch, made(SHARED))
    assert "FUSEDSTEP_INLINE T halved(T x, T y) {\n  T half = number<T>(0.5) * x;" in text
    assert "FUSEDSTEP_INLINE bool is_larger(T x, T y) {\n  return x > y;" in text
    assert "p = where(is_larger(p, g), halved(p, rate), g);" in text


def test_a_fault_of_a_text_that_is_called_has_its_own_line(monkeypatch):
    with pytest.raises(RuleError, match="rule 'new', <new>:3: halved: a power"):
        header(monkeypatch, made(SHARED.replace("0.5 * x", "x**2")))
    with pytest.raises(RuleError, match="<new>:3: halved: scalars and literals alone"):
        header(monkeypatch, made(SHARED.replace("halved(p, rate)", "halved(rate, p)")))
    with pytest.raises(RuleError, match=r"<new>:12: new: halved\(\) returns several numbers"):
        header(monkeypatch, made(SHARED.replace("where(x > y, half, x)", "half, x")))


def test_two_texts_of_one_name_are_refused(monkeypatch):
    other = SHARED.replace("def new", "def newer")
    match = r"rule 'newer', <newer>:7: another .*'is_larger': rule 'new', <new>:7"
    with pytest.raises(RuleError, match=match):
        header(monkeypatch, made(SHARED), made(other, "newer", "<newer>"))


FAMILY = """
def scaled(x, rate):
    return rate * x


def new(p, u, step_size, decay, rate):
    p = p - scaled(u, rate)
    return (p,)
"""


def test_a_rules_own_text_is_called_with_its_own_scalars(monkeypatch):
    def rule(source):
        found = made(source, factored=True)
        return Rule(
            "new", (), ("rate",), (found.update, found.update.__globals__["scaled"]), "", True
        )

    text = header(monkeypatch, rule(FAMILY))
    assert "p = p - scaled(u);" in text and "T scaled(T x) const {\n    return rate * x;" in text
    with pytest.raises(RuleError, match=r"<new>:7: new: scaled\(\) takes the scalar 'rate' itself"):
        header(monkeypatch, rule(FAMILY.replace("scaled(u, rate)", "scaled(u, decay)")))


TAKES = {
    "no gradient": "def new(p, rate):\n    return (p,)\n",
    "scalars first": "def new(rate, p, g):\n    return (p,)\n",
    "a scalar less": "def new(p, g):\n    return (p,)\n",
    "an unknown scalar": "def new(p, g, rate, decay):\n    return (p,)\n",
}


@pytest.mark.parametrize("what", TAKES)
def test_an_update_takes_the_values_the_states_and_all_scalars(what, monkeypatch):
    match = r"rule 'new', <new>:1: the update takes \(.*\), and should take \(p, g, rate\)"
    with pytest.raises(RuleError, match=match):
        header(monkeypatch, made(TAKES[what]))


# The files of rules.


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose files count as part of the package."""
    monkeypatch.setattr(rules, "__path__", [*rules.__path__, str(tmp_path)])
    yield tmp_path
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(f"fusedstep.rules.{path.stem}", None)
        rules.__dict__.pop(path.stem, None)


FILE = """
from fusedstep.rules.spec import Rule

def {name}(p, g, rate):
    p = p - rate * g
    return (p,)

RULES = (Rule("{name}", (), ("rate",), ({name},)),)
"""


def test_a_file_in_the_folder_is_enough(folder):
    for stem, name in (("z_toy", "toy"), ("a_toy", "another_toy")):
        (folder / f"{stem}.py").write_text(FILE.format(name=name))
    found = rules.find(rules.__path__)
    assert list(found) == ["another_toy", *list(RULES), "toy"]
    assert list(found) == list(rules.find(reversed(rules.__path__)))


def test_a_name_twice_is_refused_with_both_files(folder):
    for stem in ("toy_one", "toy_two"):
        (folder / f"{stem}.py").write_text(FILE.format(name="toy"))
    match = r"two rules are named 'toy': in .*toy_one\.py and in .*toy_two\.py"
    with pytest.raises(RuleError, match=match):
        rules.find(rules.__path__)


# A row of scalars.


def test_a_row_has_the_order_of_the_rule():
    rule = Rule("new", (), ("a", "b", "c"), ())
    assert rule.row({"c": 3, "a": 1, "b": 2}) == [1, 2, 3]


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"a": 1, "b": 2}, "misses 'c'"),
        ({"a": 1, "b": 2, "c": 3, "d": 4}, "does not know 'd'"),
        ({"a": 1, "b": 2, "d": 4}, "misses 'c' and does not know 'd'"),
    ],
)
def test_a_row_with_a_wrong_scalar_is_refused(values, why):
    with pytest.raises(KeyError, match=f"rule 'new' {why}"):
        Rule("new", (), ("a", "b", "c"), ()).row(values)


# The command.


def emit(*arguments):
    command = [sys.executable, "-m", "fusedstep.emit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_writes_what_changed_and_nothing_else(tmp_path):
    assert "is stale: make rules" in emit(tmp_path, "--check").stderr
    assert not (tmp_path / "rules.h").exists()
    assert emit(tmp_path).stdout.count("written") == len(headers())
    times = [(tmp_path / place).stat().st_mtime_ns for place in headers()]
    again = emit(tmp_path)
    assert again.returncode == 0 and again.stdout == ""
    assert times == [(tmp_path / place).stat().st_mtime_ns for place in headers()]
    assert emit(tmp_path, "--check").returncode == 0


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (FILE.replace("rate * g", "rate * g**2"), "rule 'toy', {}/toy.py:5: toy: a power"),
        (FILE.replace('"{name}", ()', '"adamw", ()'), "two rules are named 'adamw': in "),
    ],
)
def test_the_command_says_a_rules_fault_in_one_line(source, error, tmp_path):
    """No traceback, as `make rules` shows it. The folder counts as part of the package."""
    script = """
        import pkgutil, runpy, sys
        real, folder = pkgutil.iter_modules, sys.argv.pop()
        def more(path):
            path.append(folder)
            return real(path)
        pkgutil.iter_modules = more
        runpy.run_module("fusedstep.emit", run_name="__main__")
    """
    (tmp_path / "toy.py").write_text(source.format(name="toy"))
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(error.format(tmp_path)), done.stderr
    assert done.stderr.count("\n") == 1
