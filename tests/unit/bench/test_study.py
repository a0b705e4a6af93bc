"""Studies: their ladders and SLAs, and what planted rates say."""

import msgspec
import pytest

from fastdlrm.bench.hill_climb import Climb
from fastdlrm.bench.study import (
    NO_OFFLOAD,
    Study,
    conclude,
    conclude_offload,
    ladder_of,
    notes_of,
    offload_ladder_of,
    sla_of,
)
from fastdlrm.contracts.latency_bounded import Rung
from fastdlrm.errors import ConfigError
from fastdlrm.load.sizes import many_sizes

STUDY = Study(workers=2, sizes="fixed:200", sla_ms=10.0, ladder=(50, 400))


def rungs(**rates):
    return [
        Rung(rows=int(rows[1:]), rates=found, samples_per_s=1.0, ceiling_qps=1.0)
        for rows, found in rates.items()
    ]


def test_the_static_choice_joins_the_ladder():
    assert STUDY.static == 100
    assert STUDY.rungs == (50, 100, 400)
    assert msgspec.structs.replace(STUDY, mode="reference").rungs == (50, 400)
    assert Study(workers=2, sla_ms=1.0).static == 350  # the largest of "production" is 700
    assert 350 not in ladder_of("search", False)
    assert max(ladder_of("reference", False)) == 512
    assert ladder_of("reference", True) == ladder_of("search", True)
    assert set(offload_ladder_of(True)) < set(offload_ladder_of(False))


def test_quick_is_not_mlperfs_confidence():
    assert STUDY.confidence == 0.99
    quick = msgspec.structs.replace(STUDY, is_quick=True)
    assert quick.confidence == 0.5
    found = conclude(quick, Climb(100, (100, 400, 50)), rungs(r50=(1,), r100=(9,), r400=(5,)))
    assert any("not MLPerf's confidence" in note for note in notes_of(found))


def test_tuned_against_static():
    """Medians 20 and 30: 1.5, and the ranges do not meet."""
    found = conclude(
        STUDY, Climb(400, (100, 400)), rungs(r50=(9, 9, 9), r100=(19, 20, 21), r400=(28, 30, 31))
    )
    assert (found.static, found.tuned, found.argmax) == (100, 400, 400)
    assert found.tuned_to_static == pytest.approx(1.5)
    assert not any("overlap" in note or "climb stopped" in note for note in notes_of(found))


def test_what_a_reader_should_not_miss_is_noted():
    rates = rungs(r50=(40, 50, 60), r100=(19, 20, 29), r400=(28, 30, 31))
    rates[0] = msgspec.structs.replace(rates[0], invalid=("late",))
    found = conclude(STUDY, Climb(400, (100, 400)), rates)
    notes = notes_of(found)
    assert any(n.startswith("the hill climb stopped at B 400, the sweep's highest") for n in notes)
    assert any(n.startswith("rates of B 400 and of the static 100 overlap") for n in notes)
    assert notes[-1] == "invalid: B 50: late"


def test_no_sweep_and_no_rate():
    study = msgspec.structs.replace(STUDY, sweep=False)
    found = conclude(study, Climb(100, (100,)), rungs(r100=(0.0,)))
    assert found.argmax is None
    assert found.tuned_to_static is None


def test_a_threshold_of_offloading():
    """Of the sizes 2 x 100, 12 x 200, 2 x 300, 400 .. 700, six of 20 are 300 and more."""
    study = Study(workers=2, sla_ms=10.0, offload_device="cuda", offload_ladder=(300, 500))
    (none,) = rungs(r100=(20.0,))
    offloaded = [
        msgspec.structs.replace(none, offload_min_rows=at, rates=(rate,))
        for at, rate in ((300, 50.0), (500, 40.0))
    ]
    climb = Climb(300, (NO_OFFLOAD, 500, 300))
    found = conclude_offload(study, climb, none, offloaded)
    assert (found.tuned, found.visited, found.argmax) == (300, (0, 500, 300), 300)
    assert found.tuned_to_none == pytest.approx(2.5)
    sizes = many_sizes(study.sizes, study.seed)
    assert found.queries_share == pytest.approx(6 / 20, abs=0.02)
    assert found.samples_share == sizes[sizes >= 300].sum() / sizes.sum()
    whole = conclude(study, Climb(100, (100,)), [none], found)
    assert not any("climb over thresholds" in note for note in notes_of(whole))


def test_offloading_that_does_not_pay():
    study = Study(workers=2, sla_ms=10.0, offload_device="cuda", offload_ladder=(300, 500))
    (none,) = rungs(r100=(20.0,))
    offloaded = [
        msgspec.structs.replace(none, offload_min_rows=at, rates=(rate,), invalid=why)
        for at, rate, why in ((300, 30.0, ()), (500, 10.0, ("late",)))
    ]
    found = conclude_offload(study, Climb(NO_OFFLOAD, (NO_OFFLOAD, 500)), none, offloaded)
    assert (found.tuned, found.queries_share, found.samples_share) == (0, 0.0, 0.0)
    notes = notes_of(conclude(study, Climb(100, (100,)), [none], found))
    assert any("stopped at none, the sweep's highest rate is at 300" in note for note in notes)
    assert notes[-1] == "invalid: offload from 500: late"


def test_levels_of_an_sla():
    assert [sla_of("m", 100.0, level) for level in ("low", "medium", "high")] == [50, 100, 150]
    with pytest.raises(ConfigError, match="--sla 'x': low, medium, high are allowed"):
        sla_of("m", 100.0, "x")
    with pytest.raises(ConfigError, match="model 'm' has no sla_ms; give --sla-ms"):
        sla_of("m", None, "low")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"percentile": 50.0}, "--percentile 50: 95 or 99 is allowed"),
        ({"percentile": 99.0, "mode": "reference"}, "it takes the 95th of every 64 queries"),
        (
            {"mode": "reference", "offload_device": "cuda"},
            "--offload-device with --mode reference: the repository models its accelerator",
        ),
        ({"workers": 0}, "--workers 0, --sla-ms 10: 1 or more, and above 0"),
        ({"sla_ms": 0.0}, "--workers 2, --sla-ms 0"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Study(**{"workers": 2, "sla_ms": 10.0, **changes})
