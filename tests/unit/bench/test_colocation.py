import dataclasses

import numpy as np
import pytest
import torch

from fastdlrm.bench.colocate import conclude, measured
from fastdlrm.bench.colocation import (
    PROCESS_BYTES,
    Asked,
    Case,
    Inputs,
    cases_of,
    require_possible,
    require_room,
)
from fastdlrm.bench.measure import Timed
from fastdlrm.bench.models import BenchModel
from fastdlrm.bench.result import measurement
from fastdlrm.bench.window import Window
from fastdlrm.errors import BenchError, ConfigError

NO_INPUTS = Inputs(16, 0, 0)


def load(name="rmc1-paper", scale=0.01) -> BenchModel:
    return BenchModel.load(name, rows_scale=scale, device="cpu", overrides=())


def test_cases_of_one_model():
    found = cases_of(load(), Asked(copies=(1, 3)))
    assert found == [
        Case("private", 1, {"rmc1-paper": (0,)}),
        Case("private", 3, {"rmc1-paper": (0, 1, 2)}),
        Case("shared", 1, {"rmc1-paper": (0,)}),
        Case("shared", 3, {"rmc1-paper": (0, 1, 2)}),
    ]


def test_cases_of_a_pair():
    """Six copies of the first, four of the other, from the seventh on; 3 has no halves."""
    asked = Asked(copies=(3, 4), tables=("private",), partner=load("ncf"))
    first, second, other, pair = cases_of(load(), asked)
    assert first.members == {"rmc1-paper": (0, 1, 2)}
    assert second.members == {"rmc1-paper": (0, 1, 2, 3)}
    assert other.members == {"ncf": (4, 5, 6, 7)}
    assert pair.members == {"rmc1-paper": (0, 2), "ncf": (5, 7)}
    assert pair.places == [0, 2, 5, 7]


def test_batches_read_more_than_a_cache_holds_or_the_tables():
    small = Inputs.of(load(), 32, 20 * 2**20)
    # tables of 5 x 1000 x 128 B; a batch reads 5 x 32 x 80 rows of 128 B, more than that
    assert small.num_batches == 16
    assert small.touched_bytes == 16 * 5 * 32 * 80 * 128
    # ids of 4 B, lengths of 4 B, 128 dense features and a label in float32
    assert small.num_bytes == 16 * 4 * (5 * 32 * 80 + 5 * 32 + 32 * 128 + 32)
    # of tables of 61 MiB twice the cache is 40 MiB: 102.4 batches of 8, which read 8 x 51,200 B
    whole = load(scale=1.0)
    assert Inputs.of(whole, 8, 20 * 2**20).num_batches == 103
    assert Inputs.of(whole, 1, 20 * 2**20).num_batches == 256
    assert Inputs.of(whole, 1, None).num_batches == 16


def test_what_does_not_fit_names_a_scale_that_does():
    model, partner = load("rmc1", 0.5), load("ncf", 0.5)
    asked = Asked(copies=(1, 4), partner=partner)
    inputs = {"rmc1": NO_INPUTS, "ncf": NO_INPUTS}
    # four copies and a shared set of each: 5 x (8 x 2 M x 128 B + 168,000 x 256 B) = 9.74 GiB
    tables = 5 * (model.table_bytes + partner.table_bytes)
    free = 8 * PROCESS_BYTES["cpu"] + tables // 4
    # 80 % of a quarter of what is needed at 0.5: 0.1
    with pytest.raises(
        ConfigError,
        match=r"tables of 8 copies and one shared set \(besides 2.34 GiB of the processes\) take "
        r"9.74 GiB at rows_scale 0.5, .* give --rows-scale 0.1 or less",
    ):
        require_room([model, partner], asked, inputs, free)
    require_room([model, partner], asked, inputs, 6 * free)
    require_room([model, partner], asked, inputs, None)
    shared = dataclasses.replace(asked, tables=("shared",))
    require_room([model, partner], shared, inputs, 2 * free)
    with pytest.raises(ConfigError, match=r"tables of one shared set .* take 1.95 GiB"):
        require_room([model, partner], shared, inputs, free - tables // 8)


def test_processes_alone_may_not_fit():
    inputs = {"rmc1-paper": Inputs(16, 2**20, 0)}
    with pytest.raises(ConfigError, match=r"2 processes take 0.59 GiB besides tables, 0.50 GiB"):
        require_room([load()], Asked(copies=(2,)), inputs, 2**29)


def test_pairs_that_are_none_are_refused():
    model = load()
    with pytest.raises(ConfigError, match="--with rmc1-paper: the model itself; name another"):
        require_possible(model, Asked(copies=(2,), partner=load()))
    with pytest.raises(ConfigError, match=r"--with ncf: .* --copies are 1, 3; name an even number"):
        require_possible(model, Asked(copies=(1, 3), partner=load("ncf")))
    require_possible(model, Asked(copies=(1, 2), partner=load("ncf")))


def test_tables_that_cannot_be_shared_are_refused():
    on_gpu = dataclasses.replace(load(), device=torch.device("cuda"))
    with pytest.raises(ConfigError, match="processes that share a GPU have tables of their own"):
        require_possible(on_gpu, Asked(copies=(1,)))
    require_possible(on_gpu, Asked(copies=(1,), tables=("private",)))
    bare = BenchModel.load(
        "rmc1-paper",
        device="cpu",
        overrides=["data.sparse=[]", "random.sparse=[]"],
    )
    with pytest.raises(ConfigError, match="--tables: rmc1-paper has none to share"):
        require_possible(bare, Asked(copies=(1,)))


def test_an_sla_is_the_presets_unless_another_is_given():
    assert Asked(copies=(1,)).sla_of(load("ncf")) == 5
    assert Asked(copies=(1,)).sla_of(load()) is None
    assert Asked(copies=(1,), sla_ms=7.0).sla_of(load("ncf")) == 7


def test_a_measurement_is_of_all_copies_of_a_model():
    case = Case("shared", 4, {"a": (0, 2), "b": (5, 7)})
    # by place: 0, 2, 5, 7, two rounds of 0.1 s and 0.3 s
    first = Window(0.1, [np.array([1.0]), np.array([2.0]), np.array([8.0]), np.array([9.0])])
    second = Window(0.3, [np.array([3.0, 4.0]), np.empty(0), np.array([7.0]), np.array([6.0])])
    found = measured(case, "a", [first, second], 32)
    assert found.key == {
        "tables": "shared", "copies": "4", "model": "a", "with": "b", "batch_size": "32",
    }  # fmt: skip
    assert found.rounds == ((1, 2), (3, 4))
    assert found.num_by_job == ((1, 1), (2, 0))
    assert found.samples_per_s == pytest.approx(4 * 32 / 0.4)
    assert measured(case, "b", [first, second], 32).rounds == ((8, 9), (7, 6))


def test_copies_that_never_ran_together_are_told():
    case = Case("private", 2, {"a": (0, 1)})
    empty = Window(0.0, [np.empty(0), np.empty(0)])
    with pytest.raises(BenchError, match="2 copies, private tables: none of a finished a call"):
        measured(case, "a", [empty], 32)


def made(model, partner, copies, milliseconds, rate):
    key = {"tables": "private", "copies": str(copies), "model": model, "with": partner}
    rounds = ((milliseconds,) * 40,) * 5
    found = measurement(key, Timed(rounds, "time"))
    return type(found)(**{**_fields(found), "samples_per_s": rate})


def _fields(found):
    return {name: getattr(found, name) for name in found.__struct_fields__}


def test_curves_and_pairs():
    found = conclude(
        [
            made("a", "a", 1, 2.0, 100.0),
            made("a", "a", 2, 2.0, 200.0),
            made("a", "a", 4, 5.0, 201.0),
            made("b", "b", 2, 8.0, 10.0),
            made("a", "b", 2, 3.0, 60.0),
            made("b", "a", 2, 6.0, 15.0),
        ],
        {"a": 4.0, "b": None},
    )
    first, second = found.curves
    assert (first.model, first.tables, first.knee, first.copies_at_sla) == ("a", "private", 2, 2)
    assert "brings 0% of one alone" in first.reason
    assert (second.model, second.knee, second.sla_ms, second.copies_at_sla) == (
        "b",
        None,
        None,
        None,
    )
    assert [(pair.model, pair.partner, pair.ratio) for pair in found.pairs] == [
        ("a", "b", 1.5),
        ("b", "a", 0.75),
    ]
    assert found.pairs[0].low == found.pairs[0].high == 1.5
