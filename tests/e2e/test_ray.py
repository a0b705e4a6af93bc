"""A local Ray cluster makes the very dataset that threads make."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders import ROOT, fastdlrm
from tests.e2e.test_prepare_resume import bytes_of, killed, log, run  # noqa: F401

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="ray absent (pip install 'fastdlrm[ray]')"
    ),
    pytest.mark.xdist_group("ray"),  # one cluster at a time
]

# One cluster serves all calls: Ray takes five seconds to start.
DRIVER = """
import os
import sys
from pathlib import Path
import ray
from fastdlrm.data.cluster import cluster
from fastdlrm.data.prepare import prepare
from fastdlrm.data.source import expand_inputs
from fastdlrm.errors import FastDLRMError
from tests.builders import tiny_recipe

def die(number, report):
    os._exit(1)

log, bad, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=80 << 20)
prepare(expand_inputs([log]), tiny_recipe().data, folder / "data", memory_bytes=2**31,
        num_workers=2, ray="auto")
assert ray.is_initialized()
(folder / "lock").touch()
try:
    with cluster("auto", 1, folder) as workers:
        list(workers.run(die, [0], None, 1))
except FastDLRMError as problem:
    print(type(problem).__name__, problem)
for inputs, workers in (([bad], 1), (expand_inputs([log]), 3)):
    try:
        prepare(inputs, tiny_recipe().data, folder / "bad", memory_bytes=2**32,
                num_workers=workers, ray="auto")
    except FastDLRMError as problem:
        print(type(problem).__name__, problem)
"""


def test_ray_and_threads_make_the_same_bytes(log: str, tmp_path: Path) -> None:  # noqa: F811
    bad = tmp_path / "bad.tsv"
    bad.write_text("perhaps\n")
    command = [sys.executable, "-c", DRIVER, log, str(bad), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    run(log, tmp_path / "one")
    arguments = ["--config", "tiny", "--input", log, "--memory", "1GiB"]
    fastdlrm("prepare", *arguments, "--workers", 2, "--out", tmp_path / "two")
    assert bytes_of(tmp_path / "data") == bytes_of(tmp_path / "one")
    assert bytes_of(tmp_path / "data") == bytes_of(tmp_path / "two")
    # What goes wrong on a worker reads as it does in a thread.
    errors = [line for line in done.stdout.splitlines() if line.split(" ")[0].endswith("Error")]
    lost, row, cpus = errors
    assert lost.startswith("DataError Ray: a worker was lost for good: ")
    assert row.startswith("DataError bad.tsv line 1: 1 fields, 40 are expected")
    assert cpus.startswith("ConfigError --workers 3: the Ray cluster has 2 CPUs")


def test_a_killed_driver_is_taken_up(log: str, tmp_path: Path) -> None:  # noqa: F811
    killed(log, tmp_path / "data", "encode", 0.3, 0.0, 2, "local")
    run(log, tmp_path / "data")
    run(log, tmp_path / "whole")
    assert bytes_of(tmp_path / "data") == bytes_of(tmp_path / "whole")


def test_a_cluster_that_is_not_there_is_named(log: str, tmp_path: Path) -> None:  # noqa: F811
    nowhere = "127.0.0.1:1"  # "auto" would find what another test has left for some seconds
    arguments = ["--config", "tiny", "--input", log, "--out", tmp_path / "data", "--ray", nowhere]
    said = fastdlrm("prepare", *arguments, code=2)
    assert f"--ray {nowhere}: no cluster there: " in said
    assert "ray start --head" in said
    assert list(tmp_path.iterdir()) == []
