import pytest

from fastdlrm.config import from_tree, to_tree
from fastdlrm.errors import ConfigError
from fastdlrm.serve.config import ServeConfig


def test_everything_has_a_default_and_comes_back():
    config = from_tree({}, ServeConfig, "serve")
    assert (config.http.host, config.http.port, config.grpc.port) == ("127.0.0.1", 8000, 8001)
    assert from_tree(to_tree(config), ServeConfig, "serve") == config


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"http": {"prot": 1}}, "unknown key `prot`"),
        ({"http": {"port": 70000}}, "http.port is 70000; 0 to 65535 is allowed"),
        ({"grpc": {"port": -1}}, "grpc.port is -1"),
        ({"grpc": {"port": 8000}}, "http.port and grpc.port are both 8000"),
        ({"http": {"max_connections": 0}}, "http.max_connections is 0; more than 0"),
        ({"limits": {"max_rows": -1}}, "limits.max_rows is -1; more than 0"),
        ({"limits": {"default_timeout_ms": 9e9}}, "is above limits.max_timeout_ms 60000.0"),
        ({"batching": {"max_batch_rows": 0}}, "batching.max_batch_rows is 0"),
        ({"batching": {"max_queue_delay_ms": -1}}, "max_queue_delay_ms is -1.0; 0 or more"),
        ({"workers": {"count": -1}}, "workers.count is -1; 1 or more"),
        ({"workers": {"start_timeout_s": 0}}, "workers.start_timeout_s is 0"),
        ({"offload": {"min_rows": -1}}, "offload.min_rows is -1; 1 or more, or 0"),
        ({"offload": {"count": 0}}, "offload.count is 0; more than 0"),
        ({"security": {"token_file": "a", "token_env": "B"}}, "are both set"),
        ({"security": {"tls_key": "a"}}, "TLS needs both"),
        ({"shutdown": {"grace_s": -1}}, "shutdown.grace_s is -1.0; 0 or more"),
        ({"shutdown": {"drain_s": 0}}, "shutdown.drain_s is 0"),
        ({"log": {"access_share": 2}}, "log.access_share is 2.0; 0 to 1"),
    ],
)
def test_what_cannot_be_served_with_is_refused(tree, words):
    with pytest.raises(ConfigError, match="serve: ") as caught:
        from_tree(tree, ServeConfig, "serve")
    assert words in str(caught.value)
