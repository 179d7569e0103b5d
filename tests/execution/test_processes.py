"""Tasks in other processes: the dead are replaced, errors are told, and nothing outlives what it is for."""

import sys
import time
import types

import pytest

from dtrak.execution.processes import CONTEXT, Processes, in_processes, one_process_each
from dtrak.utils.errors import DtrakError
from tests.execution import tasks


def test_processes_do_not_run_the_main_module_again(tmp_path, monkeypatch):
    (tmp_path / "script.py").write_text("raise SystemExit(3)")
    script = types.ModuleType("__main__")
    script.__file__ = str(tmp_path / "script.py")
    monkeypatch.setitem(sys.modules, "__main__", script)
    assert list(in_processes(tasks.basename, (), ["x/a"], Processes(2))) == ["a"]


def test_the_work_of_a_dead_process_is_done_by_another(tmp_path):
    path = str(tmp_path / "a")
    assert list(in_processes(tasks.as_given, (tasks.die_once,), [path], Processes(1))) == ["a"]
    with pytest.raises(DtrakError, match="without an error message"):
        list(in_processes(tasks.as_given, (tasks.die,), ["a", "b", "c"], Processes(2)))


def test_a_process_a_task_tells_its_error_and_ends_when_unwanted():
    with pytest.raises(DtrakError, match="no 1"):
        one_process_each(tasks.refuse, [1], Processes(1), None, lambda: None)
    counted = CONTEXT.Array("i", 2)
    start = time.monotonic()

    def enough():
        if sum(counted) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one_process_each(tasks.count, [0, 1], Processes(2), counted, enough)
    assert time.monotonic() - start < 50
    with pytest.raises(DtrakError, match="exited with code"):
        one_process_each(tasks.die, [1], Processes(1), None, lambda: None)
