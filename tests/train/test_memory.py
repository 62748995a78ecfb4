"""The training program starts anew with huge pages: once, and only as a program."""

import os
import sys

import pytest
from tiny_runs import environment, run_python

from train import memory

PROGRAM = ["python", "-X", "utf8", "-m", "train", "digits_lenet5", "--epochs", "1"]


@pytest.fixture
def restarts(monkeypatch, tmp_path):
    """The programs that would have been started instead of this one."""
    calls = []
    policy = tmp_path / "enabled"
    policy.write_text("always [madvise] never\n")
    monkeypatch.setattr(memory, "POLICY", policy)
    monkeypatch.setattr(sys, "orig_argv", PROGRAM)
    # Set first, so that what the function sets is undone.
    monkeypatch.setenv(memory.VARIABLE, "")
    monkeypatch.delenv(memory.VARIABLE)
    monkeypatch.setattr(os, "execv", lambda *call: calls.append(call))
    return calls


def test_the_same_command_starts_anew_once(restarts):
    memory.restart_with_huge_pages()
    assert restarts == [(sys.executable, [sys.executable, *PROGRAM[1:]])]
    assert os.environ[memory.VARIABLE] == memory.HUGE_PAGES
    memory.restart_with_huge_pages()
    assert len(restarts) == 1


def test_what_the_user_has_set_is_kept(restarts, monkeypatch):
    monkeypatch.setenv(memory.VARIABLE, "")
    memory.restart_with_huge_pages()
    assert not restarts
    assert os.environ[memory.VARIABLE] == ""


@pytest.mark.parametrize("policy", ["[always] madvise never", "always madvise [never]"])
def test_a_system_that_chooses_itself_is_left_alone(policy, restarts):
    memory.POLICY.write_text(policy)
    memory.restart_with_huge_pages()
    memory.POLICY.unlink()  # Not Linux.
    memory.restart_with_huge_pages()
    assert not restarts


@pytest.mark.parametrize(
    "command",
    [
        ["python", "-m", "pytest", "-m", "train"],
        ["python", "notebook.py", "train"],
        ["python", "-m"],
        ["ipython"],
    ],
)
def test_another_program_is_never_started_anew(command, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", PROGRAM)
    assert memory.is_program()
    monkeypatch.setattr(sys, "orig_argv", command)
    assert not memory.is_program()


@pytest.mark.skipif(not memory.leaves_choice(), reason="the system chooses itself")
def test_the_program_starts_anew_and_says_what_it_says(tmp_path):
    # Python imports this module whenever it starts.
    code = f"import os; print('pages:', os.environ.get({memory.VARIABLE!r}))"
    (tmp_path / "sitecustomize.py").write_text(code)
    env = environment(tmp_path / "cache", PYTHONPATH=str(tmp_path))
    env.pop(memory.VARIABLE, None)
    done = run_python("-m", "train", "digits_lenett5", env=env)
    assert done.stdout.splitlines() == ["pages: None", f"pages: {memory.HUGE_PAGES}"]
    assert done.returncode == 1
    assert "did you mean" in done.stderr.lower()
    assert "Traceback" not in done.stderr
