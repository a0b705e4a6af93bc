"""How other programs name the numbers of a DLRM, and in which order they join its vectors.

Both speak here of the same parts, which bear the names

    tables.K                               the K-th table, shape (rows, D)
    tables.K.quotient, .remainder          in place of it, of a quotient-remainder table
    tables.K.pooling_weight                learned weights of its rows, shape (rows,)
    bottom_mlp.K.weight, .bias             the K-th linear layer
    top_mlp.K.weight, .bias                likewise, the output layer included
    interaction.layers.K.v, .u, .bias      the K-th cross layer
    interaction.branch1.K.weight, .bias    the K-th linear layer of a projection; branch2 likewise

dlrm_s_pytorch.py ("reference") and TorchRec's DLRM, DLRM_DCN and DLRM_Projection ("torchrec") keep
every one of them in the shape that ours has. Only TorchRec's dot products stand in another order.

Shapes: V vectors a sample, D embedding dim.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import count, takewhile
from typing import Literal, NamedTuple

import torch
from torch import Tensor

NamingName = Literal["reference", "torchrec"]

MLP = {"bottom_mlp": "bot_l", "top_mlp": "top_l"}
BAGS = "sparse_arch.embedding_bag_collection.embedding_bags."
OVER = "over_arch.model"
DIVIDED = {"quotient": "weight_q", "remainder": "weight_r"}
WEIGHTS = "v_W_l"
CROSS = {"v": "V_kernels", "u": "W_kernels", "bias": "bias"}
BRANCHES = ("branch1", "branch2")
LINEAR = ("weight", "bias")


class Depths(NamedTuple):
    """How many of each part a model has.

    Attributes:
        tables: A name each, for a naming that has names for tables.
        bottom: Linear layers of the bottom MLP.
        top: Of the top MLP, the output layer included.
        cross: Layers of the cross network.
        branches: Linear layers of a projection's two MLPs.
        divided: Which tables are quotient-remainder tables, by their numbers.
        weighted: Whether rows have learned pooling weights.
    """

    tables: tuple[str, ...]
    bottom: int
    top: int
    cross: int = 0
    branches: tuple[int, int] = (0, 0)
    divided: frozenset[int] = frozenset()
    weighted: bool = False


class Naming(NamedTuple):
    """Names of one program.

    Attributes:
        name: What the command line calls it.
        depths: How many parts the names of a file speak of.
        names: The program's name of each part.
    """

    name: NamingName
    depths: Callable[[Collection[str]], Depths]
    names: Callable[[Depths], dict[str, str]]


def naming_of(keys: Collection[str]) -> Naming | None:
    """The naming that keys of a state dict are of; None where it is neither."""
    for key in keys:
        if key.startswith(("emb_l.", *(f"{mlp}." for mlp in MLP.values()))):
            return REFERENCE
        if key.startswith(BAGS):
            return TORCHREC
    return None


def without_wrapper(keys: Collection[str]) -> dict[str, str]:
    """Keys without what a wrapper such as DLRMTrain or DDP puts before all of them.

    Returns:
        The keys as they are, by what remains of them.
    """
    found = next((key.partition(BAGS)[0] for key in keys if BAGS in key), "")
    has_all = all(key.startswith(found) for key in keys)
    return {key.removeprefix(found) if has_all else key: key for key in keys}


def triangle_columns(num_vectors: int, dim: int) -> Tensor:
    """Which column of TorchRec's `InteractionArch` each of ours is, shape (D + V (V - 1) / 2,).

    Both begin with the dense vector. Its products go row by row over the upper triangle, (0,1),
    (0,2), .. (1,2), ..; ours over the lower, (1,0), (2,0), (2,1), ..

    Args:
        num_vectors: V, with the dense one.
        dim: D.
    """
    upper = torch.triu_indices(num_vectors, num_vectors, 1)
    lower = torch.tril_indices(num_vectors, num_vectors, -1)
    place = torch.zeros(num_vectors, num_vectors, dtype=torch.int64)
    place[upper[0], upper[1]] = torch.arange(upper.shape[1])
    return torch.cat([torch.arange(dim), dim + place[lower[1], lower[0]]])


def _reference_depths(keys: Collection[str]) -> Depths:
    num_tables = _count(keys, "emb_l.{}.weight", "emb_l.{}.weight_q")
    bottom, top = (_count(keys, f"{mlp}.{{}}.weight", step=2) for mlp in MLP.values())
    divided = frozenset(k for k in range(num_tables) if f"emb_l.{k}.weight_q" in keys)
    tables = tuple(map(str, range(num_tables)))
    return Depths(tables, bottom, top, divided=divided, weighted=f"{WEIGHTS}.0" in keys)


def _reference_names(depths: Depths) -> dict[str, str]:
    """Linear layers have even numbers, the activations between them odd ones."""
    names: dict[str, str] = {}
    for k in range(len(depths.tables)):
        if k in depths.divided:
            names |= {f"tables.{k}.{p}": f"emb_l.{k}.{theirs}" for p, theirs in DIVIDED.items()}
        else:
            names[f"tables.{k}"] = f"emb_l.{k}.weight"
        if depths.weighted:
            names[f"tables.{k}.pooling_weight"] = f"{WEIGHTS}.{k}"
    for part, num_layers in (("bottom_mlp", depths.bottom), ("top_mlp", depths.top)):
        for k, kind in _linear(num_layers):
            names[f"{part}.{k}.{kind}"] = f"{MLP[part]}.{2 * k}.{kind}"
    return names


def _torchrec_depths(keys: Collection[str]) -> Depths:
    weights = (key for key in keys if key.startswith(BAGS) and key.endswith(".weight"))
    hidden = f"{OVER}.0._mlp.{{}}._linear.weight"
    first, second = (
        _count(keys, f"inter_arch.interaction_{branch}.model._mlp.{{}}._linear.weight")
        for branch in BRANCHES
    )
    return Depths(
        tuple(key.removeprefix(BAGS).removesuffix(".weight") for key in weights),
        _count(keys, "dense_arch.model._mlp.{}._linear.weight"),
        _count(keys, hidden) + 1,
        _count(keys, "inter_arch.crossnet.V_kernels.{}"),
        (first, second),
    )


def _torchrec_names(depths: Depths) -> dict[str, str]:
    """The output layer stands apart from the hidden ones."""
    names = {f"tables.{k}": f"{BAGS}{name}.weight" for k, name in enumerate(depths.tables)}
    mlps = {
        "bottom_mlp": ("dense_arch.model", depths.bottom),
        "top_mlp": (f"{OVER}.0", depths.top - 1),
    }
    for branch, num_layers in zip(BRANCHES, depths.branches, strict=True):
        mlps[f"interaction.{branch}"] = (f"inter_arch.interaction_{branch}.model", num_layers)
    for part, (theirs, num_layers) in mlps.items():
        for k, kind in _linear(num_layers):
            names[f"{part}.{k}.{kind}"] = f"{theirs}._mlp.{k}._linear.{kind}"
    for k in range(depths.cross):
        for ours, theirs in CROSS.items():
            names[f"interaction.layers.{k}.{ours}"] = f"inter_arch.crossnet.{theirs}.{k}"
    for kind in LINEAR:
        names[f"top_mlp.{depths.top - 1}.{kind}"] = f"{OVER}.1.{kind}"
    return names


def _linear(num_layers: int) -> Iterator[tuple[int, str]]:
    return ((k, kind) for k in range(num_layers) for kind in LINEAR)


def _count(keys: Collection[str], *patterns: str, step: int = 1) -> int:
    """How many numbers from 0 on, `step` apart, give a key that is there by one of the patterns."""

    def is_there(k: int) -> bool:
        return any(pattern.format(k) in keys for pattern in patterns)

    return sum(1 for _ in takewhile(is_there, count(0, step)))


REFERENCE = Naming("reference", _reference_depths, _reference_names)
TORCHREC = Naming("torchrec", _torchrec_depths, _torchrec_names)
NAMINGS: Sequence[Naming] = (REFERENCE, TORCHREC)
