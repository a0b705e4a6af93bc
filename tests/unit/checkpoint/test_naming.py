"""Names of other programs, and the order of TorchRec's dot products."""

import pytest
import torch

from fastdlrm.checkpoint.naming import (
    REFERENCE,
    TORCHREC,
    Depths,
    naming_of,
    triangle_columns,
    without_wrapper,
)

BAG = "sparse_arch.embedding_bag_collection.embedding_bags.t_a.weight"


def test_the_references_names():
    depths = Depths(("x", "y"), bottom=2, top=1)
    assert list(REFERENCE.names(depths).values()) == [
        "emb_l.0.weight",
        "emb_l.1.weight",
        "bot_l.0.weight",
        "bot_l.0.bias",
        "bot_l.2.weight",
        "bot_l.2.bias",
        "top_l.0.weight",
        "top_l.0.bias",
    ]


def test_torchrecs_names():
    """As DLRM_DCN(...).state_dict() has them, one layer of each kind, in TorchRec 1.8."""
    names = TORCHREC.names(Depths(("t_a",), bottom=1, top=2, cross=1))
    assert names == {
        "tables.0": BAG,
        "bottom_mlp.0.weight": "dense_arch.model._mlp.0._linear.weight",
        "bottom_mlp.0.bias": "dense_arch.model._mlp.0._linear.bias",
        "top_mlp.0.weight": "over_arch.model.0._mlp.0._linear.weight",
        "top_mlp.0.bias": "over_arch.model.0._mlp.0._linear.bias",
        "interaction.layers.0.v": "inter_arch.crossnet.V_kernels.0",
        "interaction.layers.0.u": "inter_arch.crossnet.W_kernels.0",
        "interaction.layers.0.bias": "inter_arch.crossnet.bias.0",
        "top_mlp.1.weight": "over_arch.model.1.weight",
        "top_mlp.1.bias": "over_arch.model.1.bias",
    }


@pytest.mark.parametrize(
    ("naming", "depths"),
    [
        (REFERENCE, Depths(("0", "1", "2"), 3, 4)),
        (TORCHREC, Depths(("t_b", "t_a"), 2, 3)),
        (TORCHREC, Depths(("t_a",), 1, 2, cross=3)),
        (TORCHREC, Depths(("t_a",), 1, 2, branches=(2, 1))),
    ],
)
def test_names_tell_how_many_parts_there_are(naming, depths):
    keys = list(naming.names(depths).values())
    assert naming.depths(keys) == depths
    assert naming_of(keys) is naming


def test_a_name_of_neither_program():
    assert naming_of(["layer1.weight", "fc.bias"]) is None


def test_what_a_wrapper_puts_before_every_name_is_left_out():
    keys = [f"module.model.{BAG}", "module.model.over_arch.model.1.bias"]
    assert without_wrapper(keys) == {BAG: keys[0], "over_arch.model.1.bias": keys[1]}
    mixed = [f"model.{BAG}", "other.bias"]
    assert without_wrapper(mixed) == dict(zip(mixed, mixed, strict=True))


def test_products_of_the_upper_triangle():
    """3 vectors of 2: TorchRec has columns a, b, (0,1), (0,2), (1,2); ours a, b, then (1,0), (2,0),
    (2,1), which are its columns 2, 3, 4. With 4 vectors its order is 01 02 03 12 13 23, ours
    01 02 12 03 13 23."""
    assert triangle_columns(3, 2).tolist() == [0, 1, 2, 3, 4]
    assert triangle_columns(4, 1).tolist() == [0, 1, 2, 4, 3, 5, 6]
    assert sorted(triangle_columns(27, 8).tolist()) == list(range(8 + 351))
    assert triangle_columns(4, 1).dtype == torch.int64
