"""The same model by TorchRec: DistributedModelParallel over one process, where it is installed."""

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from shapes import Shape
from torch import nn

from fastdlrm.batch import Batch


def is_available() -> bool:
    """Whether torchrec and its kernels can be imported."""
    return find_spec("torchrec") is not None and find_spec("fbgemm_gpu") is not None


def torchrec_step(
    shape: Shape,
    batches: Sequence[Batch],
    rule: str,
    device: torch.device,
    autocast: torch.dtype | None = None,
) -> Callable[[int], None]:
    """A training step on the k-th batch; the tables' optimizer is fused into their backward pass.

    Args:
        shape: Of the model; the tables are its own.
        batches: Rotated over, on the device.
        rule: "sgd" or "rowwise_adagrad", of the tables; the MLPs have SGD.
        device: Where.
        autocast: Type of the matrix products; None: float32.
    """
    model, inputs = _model(shape, batches, rule, device)
    dense = [p for n, p in model.named_parameters() if "embedding_bags" not in n]
    optimizer = torch.optim.SGD(dense, lr=0.01)
    loss = nn.BCEWithLogitsLoss()

    def step(k: int) -> None:
        features, sparse, labels = inputs[k % len(inputs)]
        optimizer.zero_grad()
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            logits = model(features, sparse).squeeze(1)
        loss(logits.float(), labels).backward()
        optimizer.step()

    return step


def torchrec_forward(
    shape: Shape,
    batches: Sequence[Batch],
    device: torch.device,
    autocast: torch.dtype | None = None,
) -> Callable[[int], None]:
    """A forward pass on the k-th batch, in evaluation mode."""
    model, inputs = _model(shape, batches, "sgd", device)
    model.eval()

    def forward(k: int) -> None:
        features, sparse, _ = inputs[k % len(inputs)]
        with (
            torch.no_grad(),
            torch.autocast(device.type, autocast, enabled=autocast is not None),
        ):
            torch.sigmoid(model(features, sparse))

    return forward


def _model(
    shape: Shape, batches: Sequence[Batch], rule: str, device: torch.device
) -> tuple[nn.Module, list[tuple[Any, ...]]]:
    import torchrec
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from torch import distributed
    from torchrec.distributed import DistributedModelParallel
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.models.dlrm import DLRM, DLRM_DCN

    if not distributed.is_initialized():
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511")
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, rank=0, world_size=1)
    keys = [f"t{index}" for index in range(len(shape.rows))]
    configs = [
        torchrec.EmbeddingBagConfig(
            name=key, embedding_dim=shape.dim, num_embeddings=rows, feature_names=[key]
        )
        for key, rows in zip(keys, shape.rows, strict=True)
    ]
    meta = torch.device("meta")
    collection = torchrec.EmbeddingBagCollection(tables=configs, device=meta)
    widths = {
        "dense_in_features": shape.num_dense,
        "dense_arch_layer_sizes": list(shape.bottom),
        "over_arch_layer_sizes": [*shape.top, 1],
        "dense_device": device,
    }
    if shape.num_cross_layers:
        cross = {"dcn_num_layers": shape.num_cross_layers, "dcn_low_rank_dim": shape.cross_rank}
        model = DLRM_DCN(collection, **widths, **cross)
    else:
        model = DLRM(collection, **widths)
    kind = EmbOptimType.EXACT_SGD if rule == "sgd" else EmbOptimType.EXACT_ROWWISE_ADAGRAD
    sharder: Any = EmbeddingBagCollectionSharder(
        fused_params={"optimizer": kind, "learning_rate": 0.01, "eps": 1e-8}
    )
    sharded = DistributedModelParallel(model, device=device, sharders=[sharder])
    sizes = torch.tensor(shape.bag_sizes, dtype=torch.int32, device=device)
    lengths = sizes.repeat_interleave(batches[0].num_samples)
    inputs = [
        (
            batch.dense,
            torchrec.KeyedJaggedTensor(keys=keys, values=batch.sparse.ids.long(), lengths=lengths),
            batch.labels,
        )
        for batch in batches
    ]
    return sharded, inputs
