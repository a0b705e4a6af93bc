"""What workers are told of an engine's options."""

import os
from pathlib import Path

from fastdlrm.serve.options import EngineOptions, tasks_of


def test_the_first_worker_alone_checks_the_files():
    tasks = tasks_of(Path("/m"), EngineOptions(loader="a:b", num_workers=3, program="onnx"))
    assert [task.check for task in tasks] == [True, False, False]
    assert [task.index for task in tasks] == [0, 1, 2]
    assert {(task.folder, task.loader, task.program) for task in tasks} == {("/m", "a:b", "onnx")}


def test_pinning_can_be_switched_off():
    first = min(os.sched_getaffinity(0))
    assert tasks_of(Path("/m"), EngineOptions(loader="a:b"))[0].core == first
    assert tasks_of(Path("/m"), EngineOptions(loader="a:b", pin=False))[0].core == -1
