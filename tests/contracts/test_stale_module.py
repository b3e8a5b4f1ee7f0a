"""A C++ module that was built from other rules is not used, and an error says so. It numbers rules
by their place, so it would run the wrong rule."""

import subprocess
import sys
import textwrap
from types import ModuleType

import pytest

from fusedstep import native
from fusedstep.backends import cuda

SENTENCE = "was built from other update rules than those of the package: build it again"


def module(name, **attributes):
    made = ModuleType(name)
    vars(made).update(attributes)
    return made


def test_the_modules_that_were_built_are_not_stale():
    assert native.module is not None, native.reason
    assert native.why_stale(native.module) == ""


@pytest.mark.parametrize(
    "attributes", [{"FINGERPRINT": "0123456789abcdef"}, {}], ids=["old", "none"]
)
def test_a_module_of_other_rules_is_stale(attributes, monkeypatch):
    reason = native.why_stale(module("fusedstep._native", **attributes))
    assert reason.startswith(f"fusedstep._native {SENTENCE}")
    monkeypatch.setitem(sys.modules, "fusedstep._cuda", module("fusedstep._cuda", **attributes))
    assert cuda._built().startswith(f"fusedstep._cuda {SENTENCE}")
    backend = cuda.CudaBackend("cuda", cuda._built, ("cuda",))
    assert backend.why_absent() == cuda._built()


def test_rules_in_another_order_leave_the_reference_and_no_crash(tmp_path):
    """As after an update of the package without a build: a new rule is the first one."""
    (tmp_path / "a_first_rule.py").write_text(
        textwrap.dedent(
            """
            from fusedstep.rules.spec import Rule

            def first(p, g, rate):
                p = p - rate * g
                return (p,)

            RULES = (Rule("first", (), ("rate",), (first,)),)
            """
        )
    )
    script = f"""
        import pkgutil
        real = pkgutil.iter_modules
        def more(path):
            path.append({str(tmp_path)!r})
            return real(path)
        pkgutil.iter_modules = more
        from fusedstep import rules
        pkgutil.iter_modules = real
        assert list(rules.RULES)[0] == "first"
        import torch, fusedstep.optim
        from fusedstep import backends
        param = torch.nn.Parameter(torch.ones(7))
        param.grad = torch.ones(7)
        fusedstep.optim.AdamW([param]).step()
        assert 0.99 < param[0] < 1.0
        print(backends.BACKENDS["cpu"].why_absent())
        try:
            fusedstep.optim.AdamW([param], backend="cpu").step()
        except RuntimeError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"fusedstep._native {SENTENCE}") == 2, done.stdout
