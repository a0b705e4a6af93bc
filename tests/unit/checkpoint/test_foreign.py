"""Weights of other programs in our model, and ours in theirs: the same logits, the same numbers."""

import re

import msgspec
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastdlrm.checkpoint.foreign import ForeignWeights, foreign_state
from fastdlrm.checkpoint.parts import parts_of
from fastdlrm.errors import CheckpointError
from fastdlrm.model.compression_config import (
    CompressionConfig,
    HashCompression,
    QuotientRemainder,
)
from fastdlrm.model.config import ModelConfig
from tests.foreign_models import draw_bags, filled, logits_of, make_model, make_schema
from tests.reference_dlrm import ReferenceDLRM, save_reference

ROWS = {"a": 11, "b": 3, "c": 7}
NUM_DENSE, DIM = 5, 4
BOTTOM, TOP = (6, DIM), (9, 8)
WANTED = ModelConfig(embedding_dim=2, bottom_mlp=(2,), top_mlp=(2,), dropout=0.5)
BAGS = "sparse_arch.embedding_bag_collection.embedding_bags"


SCHEMA = make_schema(ROWS, NUM_DENSE)


def make_config(interaction="dot", **changes):
    settings = {"embedding_dim": DIM, "bottom_mlp": BOTTOM, "top_mlp": TOP}
    return ModelConfig(**settings, interaction=interaction, **changes)


CONFIGS = {
    "dot": make_config(),
    "diagonal": make_config(include_diagonal=True),
    "cat": make_config("cat"),
    "cross": make_config("cross", num_cross_layers=2, cross_rank=3),
    "projection": make_config(
        "projection", projection_branch1=(7, 2 * DIM), projection_branch2=(3 * DIM,)
    ),
}
IN_BOTH = [
    *(("reference", name) for name in ("dot", "diagonal", "cat")),
    *(("torchrec", name) for name in ("dot", "cross", "projection")),
]


def saved(content, folder):
    torch.save(content, folder / "other.pt")
    return folder / "other.pt"


def offsets_of(lengths):
    return [of_feature.cumsum(0) - of_feature for of_feature in lengths]


def torchrec_logits(state, dense, ids, lengths):
    """TorchRec's DLRM and DLRM_DCN from their state dict, by their description, in float64."""
    state = {name: tensor.double() for name, tensor in state.items()}

    def perceptron(x, prefix):
        k = 0
        while (name := f"{prefix}._mlp.{k}._linear.weight") in state:
            x = F.relu(F.linear(x, state[name], state[name.replace("weight", "bias")]))
            k += 1
        return x

    vectors = [perceptron(dense.double(), "dense_arch.model")]
    tables = [tensor for name, tensor in state.items() if name.startswith(BAGS)]
    for table, i, o in zip(tables, ids, offsets_of(lengths), strict=True):
        vectors.append(F.embedding_bag(i, table, o, mode="sum"))
    x = start = torch.cat(vectors, 1)
    if "inter_arch.crossnet.bias.0" in state:
        for k in range(2):
            v, w, bias = (
                state[f"inter_arch.crossnet.{n}.{k}"] for n in ("V_kernels", "W_kernels", "bias")
            )
            x = start * (x @ v.T @ w.T + bias) + x
    else:
        pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
        products = [(vectors[i] * vectors[j]).sum(1, keepdim=True) for i, j in pairs]
        x = torch.cat([vectors[0], *products], 1)
    x = perceptron(x, "over_arch.model.0")
    return F.linear(x, state["over_arch.model.1.weight"], state["over_arch.model.1.bias"])[:, 0]


def qr(operation, num_collisions=4):
    """Tables above 5 rows are of quotient and remainder, as `ReferenceDLRM` has them."""
    default = QuotientRemainder(operation=operation, num_collisions=num_collisions)
    return CompressionConfig(default=default, threshold_rows=5)


def make_reference(interaction="dot", itself=False, **changes):
    sizes = {"rows": list(ROWS.values()), "bottom": (NUM_DENSE, *BOTTOM), "top": (*TOP, 1)}
    return ReferenceDLRM(**(sizes | changes), interaction=interaction, itself=itself).eval()


@pytest.mark.parametrize(
    ("interaction", "itself", "weighted"),
    [("dot", False, False), ("dot", True, False), ("cat", False, False), ("dot", False, True)],
)
def test_logits_of_the_reference(tmp_path, interaction, itself, weighted):
    reference = make_reference(interaction, itself, weighted=weighted)
    model, config = filled(save_reference(reference, tmp_path / "dlrm.pt"), SCHEMA, ROWS, WANTED)
    changes = {"weighted_pooling": "learned" if weighted else "none", "dropout": 0.5}
    assert config == make_config(interaction, include_diagonal=itself, **changes)
    dense, ids, lengths = draw_bags(list(ROWS.values()), NUM_DENSE, 40)
    with torch.no_grad():
        expected = reference.double()(dense.double(), ids, offsets_of(lengths)).logit()
    found = logits_of(model, dense, ids, lengths)
    assert expected.std() > 0.3
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


def test_learned_weights_that_are_of_no_row(tmp_path):
    divided = save_reference(make_reference(qr=(4, "add"), weighted=True), tmp_path / "qr.pt")
    message = "'v_W_l.0' weighs the ids of .* as 'emb_l.0.weight_q'; here their rows have weights"
    with pytest.raises(CheckpointError, match=message):
        filled(divided, SCHEMA, ROWS, msgspec.structs.replace(WANTED, compression=qr("add")))
    state = make_reference(weighted=True).state_dict()
    state["v_W_l.1"] = torch.ones(4)
    expected = shapes((4,), (3,)) + " the rows of the dataset's table"
    with pytest.raises(CheckpointError, match="'v_W_l.1' " + expected):
        filled(saved(state, tmp_path), SCHEMA, ROWS, WANTED)


@pytest.mark.parametrize("operation", ["add", "mult"])
def test_logits_of_quotient_remainder_tables(tmp_path, operation):
    """Of single ids; of bags the reference multiplies what is pooled, the paper what is not."""
    reference = make_reference(qr=(4, operation))
    wanted = msgspec.structs.replace(WANTED, compression=qr(operation))
    path = save_reference(reference, tmp_path / "dlrm.pt")
    model, config = filled(path, SCHEMA, ROWS, wanted)
    dense, _, _ = draw_bags([], NUM_DENSE, 40)
    ids = [torch.arange(40) * 7 % rows for rows in ROWS.values()]
    ones = [torch.ones(40, dtype=torch.int64)] * 3
    with torch.no_grad():
        expected = reference.double()(dense.double(), ids, offsets_of(ones)).logit()
    found = logits_of(model, dense, ids, ones)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    back = foreign_state(model, config, SCHEMA, "reference")
    state = torch.load(path, weights_only=False)["state_dict"]
    assert list(back) == list(state)
    for name, tensor in back.items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0, msg=name)
    with pytest.raises(
        CheckpointError, match="table 't_a' is a quotient-remainder table; torchrec"
    ):
        foreign_state(model, config, SCHEMA, "torchrec")


@pytest.mark.parametrize(
    ("of_file", "of_config", "message"),
    [
        ((4, "add"), CompressionConfig(), "'emb_l.0.weight_q' is of a quotient-rem"),
        (None, qr("add"), "'emb_l.0.weight' is of a plain table, by"),
        ((4, "add"), qr("add", 2), r"weight_q' .* \(3, 4\), expected is \(6, 4\) by .* num_col"),
    ],
)
def test_a_table_compressed_otherwise_is_refused(tmp_path, of_file, of_config, message):
    path = save_reference(make_reference(qr=of_file), tmp_path / "dlrm.pt")
    wanted = msgspec.structs.replace(WANTED, compression=of_config)
    with pytest.raises(CheckpointError, match=message):
        filled(path, SCHEMA, ROWS, wanted)


@pytest.mark.parametrize("kind", ["dot", "cross"])
def test_logits_of_torchrec(tmp_path, kind):
    """From our weights to TorchRec's, and back into another model of ours."""
    source = make_model(CONFIGS[kind], SCHEMA, ROWS)
    state = foreign_state(source, CONFIGS[kind], SCHEMA, "torchrec")
    model, config = filled(saved(state, tmp_path), SCHEMA, ROWS, WANTED)
    assert config == ModelConfig(**{**to_dict(CONFIGS[kind]), "dropout": 0.5})
    dense, ids, lengths = draw_bags(list(ROWS.values()), NUM_DENSE, 40)
    expected = torchrec_logits(state, dense, ids, lengths)
    for ours in (source, model):
        found = logits_of(ours, dense, ids, lengths)
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


def to_dict(config):
    return {name: getattr(config, name) for name in config.__struct_fields__}


@pytest.mark.parametrize(("naming", "kind"), IN_BOTH)
def test_the_round_trip_is_exact(tmp_path, naming, kind):
    source = make_model(CONFIGS[kind], SCHEMA, ROWS)
    state = foreign_state(source, CONFIGS[kind], SCHEMA, naming)
    model, config = filled(saved(state, tmp_path), SCHEMA, ROWS, WANTED)
    expected, found = source.state_tensors(), model.state_tensors()
    assert len(found) == len(expected)
    by_part = zip(
        parts_of(source, SCHEMA, naming).items(),
        parts_of(model, SCHEMA, naming).values(),
        strict=True,
    )
    for (part, ours), again in by_part:
        torch.testing.assert_close(again, ours, rtol=0, atol=0, msg=part)
    back = foreign_state(model, config, SCHEMA, naming)
    assert list(back) == list(state)
    for name, tensor in back.items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0, msg=name)


def test_the_reference_loads_what_is_exported():
    source = make_model(CONFIGS["dot"], SCHEMA, ROWS)
    reference = make_reference()
    reference.load_state_dict(foreign_state(source, CONFIGS["dot"], SCHEMA, "reference"))
    dense, ids, lengths = draw_bags(list(ROWS.values()), NUM_DENSE, 40)
    with torch.no_grad():
        expected = reference.double()(dense.double(), ids, offsets_of(lengths)).logit()
    found = logits_of(source, dense, ids, lengths)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


def test_tables_of_16_bits_survive(tmp_path):
    source = make_model(CONFIGS["dot"], SCHEMA, ROWS, torch.bfloat16)
    state = foreign_state(source, CONFIGS["dot"], SCHEMA, "torchrec")
    model, _ = filled(saved(state, tmp_path), SCHEMA, ROWS, WANTED)
    for table in ROWS:
        torch.testing.assert_close(
            model.tables.table(table), source.tables.table(table).float(), rtol=0, atol=0
        )


def test_torchrec_shares_a_table_among_features_side_by_side(tmp_path):
    schema = make_schema(("a", "a", "b"), NUM_DENSE)
    rows = {"a": 11, "b": 3}
    source = make_model(CONFIGS["dot"], schema, rows)
    state = foreign_state(source, CONFIGS["dot"], schema, "torchrec")
    assert [name for name in state if name.startswith(BAGS)] == [
        f"{BAGS}.t_a.weight",
        f"{BAGS}.t_b.weight",
    ]
    filled(saved(state, tmp_path), schema, rows, WANTED)
    with pytest.raises(CheckpointError, match="'a' is shared by 2 features; dlrm_s_pytorch has"):
        foreign_state(source, CONFIGS["dot"], schema, "reference")
    apart = make_schema(("a", "b", "a"), NUM_DENSE)
    with pytest.raises(CheckpointError, match=r"order of tables \['a', 'b', 'a'\]; TorchRec has"):
        foreign_state(make_model(CONFIGS["dot"], apart, rows), CONFIGS["dot"], apart, "torchrec")


@pytest.mark.parametrize(("asked", "found"), [("dot", "dot"), ("cat", "cat"), ("projection", None)])
def test_a_width_of_two_interactions_is_the_configs(tmp_path, asked, found):
    """Of 4 vectors of 2 dot makes 2 + 6 = 8 and cat 4 * 2 = 8."""
    reference = make_reference(bottom=(NUM_DENSE, 2))
    path = save_reference(reference, tmp_path / "dlrm.pt")
    branches = {"projection_branch1": (2,), "projection_branch2": (2,)}
    wanted = ModelConfig(
        embedding_dim=2, bottom_mlp=(2,), top_mlp=(), interaction=asked,
        **(branches if asked == "projection" else {}),
    )  # fmt: skip
    weights = ForeignWeights.open(path)
    if found is not None:
        assert weights.model_config(wanted, SCHEMA).interaction == found
        return
    message = (
        "'top_l.0.weight' takes 8 numbers, which more than one interaction makes: "
        "model.interaction=dot or model.interaction=cat; set one"
    )
    with pytest.raises(CheckpointError, match=message):
        weights.model_config(wanted, SCHEMA)


def test_rows_go_out_times_their_learned_weights_and_come_in_without(tmp_path):
    source = make_model(CONFIGS["dot"], SCHEMA, ROWS)
    source.tables.learn_weights()
    with torch.no_grad():
        source.tables.pooling_weight.copy_(torch.linspace(-1, 2, sum(ROWS.values())))
    with pytest.raises(CheckpointError, match=r"the model has 'pooling_weights.a', for which"):
        foreign_state(source, CONFIGS["dot"], SCHEMA, "torchrec")
    expected = source.tables.table("b") * source.tables.pooling_weights()["b"][:, None]
    source.tables.fold_weights()
    state = foreign_state(source, CONFIGS["dot"], SCHEMA, "reference")
    assert torch.equal(state["emb_l.1.weight"], expected)
    wanted = msgspec.structs.replace(
        WANTED, weighted_pooling="learned", pooling="mean", table_pooling={"a": "mean"}
    )
    model, found = filled(saved(state, tmp_path), SCHEMA, ROWS, wanted)
    assert (found.weighted_pooling, found.pooling, found.table_pooling) == ("none", "sum", {})
    assert torch.equal(model.tables.table("b"), expected)


WAS = "has shape {}, expected is {} by"


def shapes(found, expected):
    return re.escape(WAS.format(found, expected))


def without(*names):
    return lambda state: [state.pop(name) for name in names]


def put(**tensors):
    return lambda state: state.update(
        {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("top_l.2.bias"), "'top_l.2.bias' is missing; it has emb_l.0.weight, "),
        (without("bot_l.2.weight"), "'bot_l.2.bias' has no place .* follows on one that is miss"),
        (without("emb_l.1.weight"), "'emb_l.2.weight' has no place"),
        (put(v_W_l__0=torch.ones(11)), "'v_W_l.1' is missing; it has emb_l.0.weight, "),
        (put(emb_l__3__weight_q=torch.ones(2, 4)), "'emb_l.3.weight_r' is missing"),
        (put(emb_l__3__embs__weight=torch.ones(2, 4)), r"'emb_l.3.embs.weight' is .*--md-flag"),
        (put(bot_l__module__0__bias=torch.ones(2)), r"'bot_l.module.0.bias' is .*one rank's part"),
        (put(bot_l__2__weight=torch.ones(3, 6)), r"'bot_l.2.weight' gives vectors of 3, 'emb_l.0"),
        (put(bot_l__2__weight=torch.ones(4)), r"'bot_l.2.weight' has shape \(4,\); 2 dimensions"),
        (put(bot_l__2__bias=torch.ones(0)), r"'bot_l.2.bias' has shape \(0,\); 1 dim"),
        (
            put(bot_l__2__weight=torch.ones(4, 5)),
            f"'bot_l.2.weight' {shapes((4, 5), (4, 6))} the widths of the layers before",
        ),
        (
            put(bot_l__0__weight=torch.ones(6, 4)),
            f"'bot_l.0.weight' {shapes((6, 4), (6, 5))} the dataset's number of dense",
        ),
        (
            put(emb_l__1__weight=torch.ones(4, 4)),
            f"'emb_l.1.weight' {shapes((4, 4), (3, 4))} the rows of the dataset's table; prepare",
        ),
        (
            put(emb_l__1__weight=torch.ones(3, 2)),
            f"'emb_l.1.weight' {shapes((3, 2), (3, 4))} 'emb_l.0.weight': all tables",
        ),
        (
            put(top_l__4__weight=torch.ones(2, 8)),
            f"'top_l.4.weight' {shapes((2, 8), (1, 8))} ",
        ),
        (
            put(top_l__0__weight=torch.ones(9, 12)),
            r"'top_l.0.weight' takes 12 numbers; .* dot makes 10, with its diagonal 14, cat 16",
        ),
        (
            put(emb_l__3__weight=torch.ones(2, 4)),
            r"4 tables, the last 'emb_l.3.weight'; the dataset has 3, the last 'c'",
        ),
        (
            without("emb_l.0.weight", "emb_l.1.weight", "emb_l.2.weight"),
            "0 tables, 2 layers of the bottom and 3 of the top MLP; 1 or more",
        ),
    ],
)
def test_a_file_of_another_model_is_refused(tmp_path, change, message):
    state = dict(make_reference().state_dict())
    change(state)
    path = saved(state, tmp_path)
    with pytest.raises(CheckpointError, match=message) as raised:
        filled(path, SCHEMA, ROWS, WANTED)
    assert str(raised.value).startswith(str(path))


def test_names_of_neither_program_are_refused(tmp_path):
    path = saved(nn.Linear(2, 1).state_dict(), tmp_path)
    with pytest.raises(CheckpointError, match="'weight' is a name of neither program"):
        filled(path, SCHEMA, ROWS, WANTED)


def test_tables_in_another_order_are_refused(tmp_path):
    """Tables of equal sizes would be taken for one another."""
    state = foreign_state(
        make_model(CONFIGS["dot"], SCHEMA, ROWS), CONFIGS["dot"], SCHEMA, "torchrec"
    )
    bags = [name for name in state if name.startswith(BAGS)]
    turned = {name: state[name] for name in [*reversed(bags), *(state.keys() - set(bags))]}
    with pytest.raises(
        CheckpointError, match="tables in the order c, b, a, the dataset's are a, b"
    ):
        filled(saved(turned, tmp_path), SCHEMA, ROWS, WANTED)


@pytest.mark.parametrize(
    ("naming", "config", "message"),
    [
        ("reference", CONFIGS["cross"], "'cross'; reference has dot and cat: export to torc"),
        (
            "torchrec",
            CONFIGS["cat"],
            "'cat'; torchrec has dot and cross and projection: export to r",
        ),
        ("torchrec", CONFIGS["diagonal"], "model.include_diagonal is True; torchrec knows False"),
        (
            "reference",
            make_config(pooling="mean"),
            "model.pooling is 'mean'; reference knows 'sum'",
        ),
        (
            "reference",
            make_config(table_dims={"a": 2, "b": 4}),
            "table 'a' has 2 of 4 columns (model.table_dims); reference takes tables of",
        ),
        (
            "torchrec",
            make_config(table_pooling={"b": "mean"}),
            "table 'b': model.pooling is 'mean'; torchrec knows 'sum' alone",
        ),
        ("torchrec", make_config(norm="layer"), "model.norm is 'layer'; torchrec knows 'none'"),
        ("torchrec", ModelConfig(embedding_dim=4, bottom_mlp=(4,), top_mlp=()), "top_mlp is empty"),
    ],
)
def test_a_model_that_the_other_program_lacks_is_not_exported(naming, config, message):
    with pytest.raises(CheckpointError, match=re.escape(message)):
        foreign_state(make_model(config, SCHEMA, ROWS), config, SCHEMA, naming)


def test_a_model_without_dense_features_is_not_exported():
    config = ModelConfig(embedding_dim=4, bottom_mlp=(), top_mlp=(3,))
    schema = make_schema(ROWS, 0)
    with pytest.raises(CheckpointError, match="no dense features; reference needs 1 or more"):
        foreign_state(make_model(config, schema, ROWS), config, schema, "reference")


def test_a_tensor_without_a_place_is_named():
    """Of a model whose config says nothing of it."""
    model = make_model(make_config(norm="layer"), SCHEMA, ROWS)
    with pytest.raises(CheckpointError, match=r"the model has 'bottom_mlp\.1\.weight', for which"):
        foreign_state(model, CONFIGS["dot"], SCHEMA, "torchrec")
    hashed = {"a": HashCompression(num_rows=5)}
    config = make_config(compression=CompressionConfig(tables=hashed))
    with pytest.raises(CheckpointError, match=r"the model has 'tables\.a\.hash', for which"):
        foreign_state(make_model(config, SCHEMA, ROWS), config, SCHEMA, "reference")
