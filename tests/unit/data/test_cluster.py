"""What is refused before any work is given to a cluster; the work itself is tested end to end."""

import sys
from pathlib import Path

import pytest

from fastdlrm import __version__
from fastdlrm.data.cluster import cluster, require_alike
from fastdlrm.errors import ConfigError, DataError


def test_no_address_is_no_cluster(tmp_path: Path) -> None:
    with cluster("", 2, tmp_path) as workers:
        assert workers is None


def test_a_missing_ray_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(ConfigError, match=r"--ray: the package ray is not installed; pip install"),
        cluster("local", 2, tmp_path),
    ):
        pytest.fail("entered")


def test_a_worker_must_see_the_folder_and_have_the_version(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"a worker does not see {tmp_path}; .* must lie in folde"):
        require_alike(tmp_path, __version__)
    (tmp_path / "lock").touch()
    require_alike(tmp_path, __version__)
    with pytest.raises(ConfigError, match=rf"a worker has fastdlrm {__version__}, this process 0"):
        require_alike(tmp_path, "0.0.0")
