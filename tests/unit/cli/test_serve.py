"""How flags, files and the environment become a server's config."""

import json
import os
import socket
import subprocess
import sys

import pytest

from fastdlrm.bench import host
from fastdlrm.config import load_over_defaults
from fastdlrm.errors import ConfigError
from fastdlrm.serve.config import ServeConfig
from tests.builders import fastdlrm


def test_a_file_goes_over_the_defaults_and_overrides_over_the_file(tmp_path):
    path = tmp_path / "serve.toml"
    path.write_text('models = ["ctr"]\n[http]\nport = 9000\nhost = "::1"\n[limits]\nmax_rows = 7\n')
    config = load_over_defaults(str(path), ServeConfig, ["http.port=9001", "workers.device=cuda:1"])
    assert (config.http.port, config.http.host, config.grpc.port) == (9001, "::1", 8001)
    assert (config.limits.max_rows, config.models) == (7, ("ctr",))
    assert config.workers.device == "cuda:1"
    assert load_over_defaults(None, ServeConfig) == ServeConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http = 8000", "http is 8000; it is a section: write [http]"),
        ("[http]\nprot = 1", "unknown key `prot`"),
        ("[htpp]\nport = 1", "unknown key `htpp`"),
        ("port = ", "not TOML"),
    ],
)
def test_a_wrong_file_is_an_error(tmp_path, text, words):
    path = tmp_path / "serve.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"serve\.toml") as caught:
        load_over_defaults(str(path), ServeConfig)
    assert words in str(caught.value)


def test_usable_cores_are_whole_ones_of_the_quota(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for quota, cores in (("max 100000", 8), ("350000 100000", 3), ("50000 100000", 1)):
        monkeypatch.setattr(
            host,
            "_read",
            lambda path, quota=quota: host.Fact(value="0::/\n" if path.name == "cgroup" else quota),
        )
        assert host.usable_cores() == cores


def test_mistakes_are_told_in_one_line(tmp_path):
    no_file = fastdlrm("serve", tmp_path, "--config", "none.toml", code=2)
    assert "config 'none.toml': no such file" in no_file
    no_token = fastdlrm("serve", tmp_path, "--set", "security.token_env=NO_SUCH", code=2)
    assert no_token == (
        "error: security.token_env NO_SUCH: the environment variable is not set; set it to the "
        "token\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        in_use = fastdlrm("serve", tmp_path, "--port", port, code=2)
    assert f"http.port {port}: cannot listen there" in in_use
    no_model = fastdlrm("serve", tmp_path, "--port", 0, "--grpc-port", 0, code=1)
    assert no_model.splitlines()[-1].startswith(f"error: {tmp_path}: no exported model")


def test_the_token_is_not_in_the_log(tmp_path):
    """Nor in the config, which the log holds: a file or a variable holds it."""
    environment = {**os.environ, "CTR_TOKEN": "s3cret"}
    command = [sys.executable, "-m", "fastdlrm", "serve", tmp_path, "--port", "0"]
    command += ["--grpc-port", "0", "--set", "security.token_env=CTR_TOKEN", "--workers", "3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "s3cret" not in done.stderr
    config = json.loads(done.stderr.splitlines()[0])["config"]
    assert config["security"]["token_env"] == "CTR_TOKEN"
    assert config["workers"]["count"] == 3
