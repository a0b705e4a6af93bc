"""TorchRec's own models: they load our weights, say what they predict, and save themselves.

On stdin a folder and, for each model, its sizes; in the folder NAME.pt with our state dict, and
inputs.pt. On stdout TorchRec's version. It leaves NAME-logits.pt and NAME-saved.pt.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torchrec
from torch import nn
from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRM_Projection


def build(sizes: dict[str, Any]) -> nn.Module:
    """A model as torchrec_dlrm's script builds it, its numbers drawn."""
    features = [(name, rows) for name, rows in sizes["rows"].items()]
    configs = [
        torchrec.EmbeddingBagConfig(
            name=f"t_{name}", embedding_dim=sizes["dim"], num_embeddings=rows, feature_names=[name]
        )
        for name, rows in features
    ]
    widths = {
        "dense_in_features": sizes["num_dense"],
        "dense_arch_layer_sizes": sizes["bottom"],
        "over_arch_layer_sizes": [*sizes["top"], 1],
    }
    bags = torchrec.EmbeddingBagCollection(tables=configs)
    if sizes["kind"] == "cross":
        layers = {"dcn_num_layers": sizes["num_layers"], "dcn_low_rank_dim": sizes["rank"]}
        return DLRM_DCN(bags, **widths, **layers)
    if sizes["kind"] == "projection":
        first, second = sizes["branches"]
        branches = {"interaction_branch1_layer_sizes": first}
        return DLRM_Projection(bags, **widths, **branches, interaction_branch2_layer_sizes=second)
    return DLRM(bags, **widths)


def main() -> None:
    """Do the task on stdin."""
    task = json.load(sys.stdin)
    folder = Path(task["folder"])
    inputs = torch.load(folder / "inputs.pt", weights_only=True)
    for name, sizes in task["models"].items():
        model = build(sizes).eval()
        model.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True), strict=True)
        sparse = torchrec.KeyedJaggedTensor(
            keys=list(sizes["rows"]), values=inputs["ids"], lengths=inputs["lengths"]
        )
        with torch.no_grad():
            logits = model(inputs["dense"], sparse).squeeze(1)
        torch.save(logits, folder / f"{name}-logits.pt")
        torch.save(model.state_dict(), folder / f"{name}-saved.pt")
    print(json.dumps({"torchrec": torchrec.__version__}))


if __name__ == "__main__":
    main()
