import pytest

from fastdlrm.errors import ConfigError
from fastdlrm.parallel.topology import card_topology, free_host_bytes, named_topology


@pytest.mark.parametrize(
    ("name", "num_ranks", "device"),
    [("h100x8", 8, "cuda"), ("h200x2", 2, "cuda"), ("h100x64", 64, "cuda"), ("cpu", 64, "cpu")],
)
def test_names(name: str, num_ranks: int, device: str) -> None:
    topology = named_topology(name)
    assert (topology.name, topology.num_ranks, topology.device) == (name, num_ranks, device)


def test_more_cards_than_a_node_has_are_several_nodes() -> None:
    assert named_topology("h100x64").ranks_per_node == 8
    assert named_topology("h100x64").node_gb_s < named_topology("h100x64").exchange_gb_s


@pytest.mark.parametrize("name", ["", "h100", "h100x0", "h100x", "a100x8", "h100x8 ", "CPU"])
def test_no_such_machine(name: str) -> None:
    with pytest.raises(ConfigError, match=r"topology '.*': h100xN or h200xN .*cpu or measure is"):
        named_topology(name)


def test_a_card_by_what_its_driver_says() -> None:
    found = card_topology("NVIDIA H100 80GB HBM3", 16, 4)
    assert found is not None
    assert (found.name, found.num_ranks, found.ranks_per_node) == ("h100x16", 16, 4)
    assert found.copy_gb_s == named_topology("h100x1").copy_gb_s
    assert card_topology("NVIDIA A100-SXM4-40GB", 8, 8) is None


def test_free_memory_is_some() -> None:
    free = free_host_bytes()
    assert free is None or 2**20 < free < 2**50
