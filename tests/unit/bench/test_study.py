"""Studies: their ladders and SLAs, and what planted rates say."""

import msgspec
import pytest

from fastdlrm.bench.hill_climb import Climb
from fastdlrm.bench.study import Study, conclude, ladder_of, notes_of, sla_of
from fastdlrm.contracts.latency_bounded import Rung
from fastdlrm.errors import ConfigError

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
        ({"workers": 0}, "--workers 0, --sla-ms 10: 1 or more, and above 0"),
        ({"sla_ms": 0.0}, "--workers 2, --sla-ms 0"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Study(**{"workers": 2, "sla_ms": 10.0, **changes})
