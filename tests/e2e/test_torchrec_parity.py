"""TorchRec's own DLRM, DLRM_DCN and DLRM_Projection against ours, from the same weights.

TorchRec has a virtual environment of its own, beside our torch, which its kernels must fit.
"""

import pytest
import torch

from fastdlrm.checkpoint.foreign import foreign_state
from fastdlrm.model.config import ModelConfig
from tests.clients.environments import client_python, run_client
from tests.foreign_models import draw_bags, filled, logits_of, make_model, make_schema

pytestmark = [pytest.mark.parity, pytest.mark.xdist_group("torchrec")]

TORCH = "2.13"
"""The torch that the kernels pinned in clients/torchrec.txt are built for."""
ROWS = {f"cat_{k}": 3 + 37 * k for k in range(26)}
"""26 features as Criteo's logs have."""
NUM_DENSE, DIM, BOTTOM, TOP, LAYERS, RANK = 13, 16, (64, 32, 16), (64, 32), 3, 24
BRANCHES = (48, 5 * DIM), (3 * DIM,)
SIZES = {"embedding_dim": DIM, "bottom_mlp": BOTTOM, "top_mlp": TOP}
CONFIGS = {
    "dot": ModelConfig(**SIZES),
    "cross": ModelConfig(**SIZES, interaction="cross", num_cross_layers=LAYERS, cross_rank=RANK),
    "projection": ModelConfig(
        **SIZES,
        interaction="projection",
        projection_branch1=BRANCHES[0],
        projection_branch2=BRANCHES[1],
    ),
}
SCHEMA = make_schema(ROWS, NUM_DENSE)


@pytest.fixture(scope="module")
def ours():
    models = {name: make_model(config, SCHEMA, ROWS) for name, config in CONFIGS.items()}
    for model in models.values():  # as drawn, tables would hardly matter to the logits
        model.tables.weight.data.mul_(5)
    return models


@pytest.fixture(scope="module")
def inputs():
    return draw_bags(list(ROWS.values()), NUM_DENSE, 512)


@pytest.fixture(scope="module")
def folder(ours, inputs, tmp_path_factory):
    """What TorchRec says of our weights, in a process of its own."""
    if not torch.__version__.startswith(f"{TORCH}."):
        pytest.skip(f"TorchRec's kernels in clients/torchrec.txt need torch {TORCH}")
    folder = tmp_path_factory.mktemp("torchrec")
    dense, ids, lengths = inputs
    tensors = {"dense": dense, "ids": torch.cat(ids), "lengths": torch.cat(lengths)}
    torch.save(tensors, folder / "inputs.pt")
    sizes = {
        "rows": ROWS,
        "dim": DIM,
        "num_dense": NUM_DENSE,
        "bottom": BOTTOM,
        "top": TOP,
        "num_layers": LAYERS,
        "rank": RANK,
        "branches": BRANCHES,
    }
    for name, model in ours.items():
        torch.save(foreign_state(model, CONFIGS[name], SCHEMA, "torchrec"), folder / f"{name}.pt")
    task = {"folder": str(folder), "models": {name: {**sizes, "kind": name} for name in CONFIGS}}
    found = run_client(client_python("torchrec", beside_ours=True), "torchrec_dlrm.py", task)
    assert found["torchrec"].startswith("1.8.")
    return folder


@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_are_torchrecs(folder, ours, inputs, kind):
    """Of our model, and of one that was filled from the state dict that TorchRec saved."""
    expected = torch.load(folder / f"{kind}-logits.pt", weights_only=True)
    saved = folder / f"{kind}-saved.pt"
    imported, config = filled(saved, SCHEMA, ROWS, ModelConfig(**SIZES))
    assert config == CONFIGS[kind]
    assert expected.std() > 0.05
    for name, model in (("exported", ours[kind]), ("imported", imported)):
        difference = float((logits_of(model, *inputs) - expected).abs().max())
        print(f"{kind}, {name}: largest difference of a logit {difference:.2e}")
        assert difference <= 1e-5
    for name, tensor in imported.state_tensors().items():
        torch.testing.assert_close(tensor, ours[kind].state_tensors()[name], rtol=0, atol=0)
