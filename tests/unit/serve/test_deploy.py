"""What deploy/ holds names commands, keys and paths that exist."""

import re
import tomllib

import pytest
import yaml
from typer.testing import CliRunner

from fastdlrm.cli.main import app
from fastdlrm.config import from_tree, load_over_defaults
from fastdlrm.serve.config import ServeConfig
from fastdlrm.serve.metrics import Metrics
from fastdlrm.serve.openapi import document
from tests.builders import ROOT

DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def objects():
    found = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    return {made["kind"]: made for made in found}


def test_the_manifest_of_kubernetes(objects):
    config = from_tree(
        tomllib.loads(objects["ConfigMap"]["data"]["serve.toml"]), ServeConfig, "kubernetes.yaml"
    )
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    shutdown = config.shutdown
    assert pod["terminationGracePeriodSeconds"] > shutdown.grace_s + shutdown.drain_s
    assert config.security.token_env == server["env"][0]["name"]
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    assert ports == {"http": config.http.port, "grpc": config.grpc.port}
    paths = document()["paths"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["httpGet"]["path"] in paths
    assert server["args"][0] == "serve"
    assert "--config" in server["args"]


def test_the_unit_of_systemd():
    unit = (DEPLOY / "fastdlrm.service").read_text()
    (command,) = re.findall(r"^ExecStart=\S+/fastdlrm (.*)$", unit, re.MULTILINE)
    words = command.split()
    assert words[0] == "serve"
    override = words[words.index("--set") + 1]
    assert load_over_defaults(None, ServeConfig, [override]).security.token_file.endswith("/token")


def test_the_container_file():
    text = (DEPLOY / "Containerfile").read_text()
    (path,) = re.findall(r"http://127.0.0.1:8000(/[\w/]+)", text)
    assert path in document()["paths"]
    assert "USER 10001" in text


def test_the_guide_names_every_metric_and_every_key_it_names_exists():
    guide = (ROOT / "docs/guides/serving.md").read_text()
    named = set(re.findall(r"fastdlrm_\w+", guide))
    text = Metrics().text().decode()
    exported = set(re.findall(r"^# HELP (fastdlrm_\w+)", text, re.MULTILINE))
    assert exported <= named
    assert named - {"fastdlrm_worker"} <= exported
    tree = load_over_defaults(None, ServeConfig)
    for section, key in re.findall(r"^\| .*?`(\w+)\.(\w+)`", guide, re.MULTILINE):
        assert hasattr(getattr(tree, section), key), f"{section}.{key}"


def test_every_flag_of_the_guide_exists():
    output = CliRunner().invoke(app, ["serve", "--help"], terminal_width=200).output
    for flag in ("--host", "--port", "--grpc-port", "--workers", "--device", "--config", "--set"):
        assert flag in output
