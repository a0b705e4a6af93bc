"""Names tell results apart by what differs, and by no more."""

import pytest

from fastdlrm.report.provenance import context, differences, groups, machine, notes
from tests.unit.report.planted import host, measured, result, sources

SOME = [measured({"batch_size": "1"}, 2.0)]


def names(*results):
    (group,) = groups(sources(*results))
    return [one.name for one in group]


def test_one_result_is_named_by_its_machine():
    assert names(result(SOME)) == ["Planted CPU, 8 cores"]
    gpu = result(SOME, device="cuda", host=host(gpu="Planted GPU"))
    assert names(gpu) == ["Planted GPU"]
    assert machine(result(SOME, host=host(gpu="Planted GPU"))) == "Planted CPU, 8 cores"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"host": host(threads=1)}, ["4 threads", "1 thread"]),
        ({"commit": "ffff"}, ["commit 0123456789ab", "commit ffff"]),
        ({"settings": {"sla_ms": 5.0}}, ["0.json", "sla_ms 5"]),
        ({}, ["0.json", "1.json"]),
    ],
    ids=["threads", "commit", "settings", "nothing"],
)
def test_results_of_one_machine_are_told_apart_by_what_differs(changes, expected):
    assert names(result(SOME), result(SOME, **changes)) == expected


def test_machines_need_no_more_than_their_names():
    assert names(result(SOME), result(SOME, host=host("Other CPU", threads=1), commit="f")) == [
        "Planted CPU, 8 cores",
        "Other CPU, 8 cores",
    ]


def test_models_scales_and_configs_are_groups_of_their_own():
    other = {"model": {"embedding_dim": 64}}
    found = groups(
        sources(
            result(SOME),
            result(SOME, rows_scale=1.0),
            result(SOME, model="rmc2"),
            result(SOME, config=other),
            result(SOME, host=host("Other CPU")),
        )
    )
    assert [len(group) for group in found] == [2, 1, 1, 1]


def test_the_context_says_model_scale_machine_commit_and_day():
    (group,) = groups(sources(result(SOME, commit="0123456789abcdef+")))
    assert context(group) == (
        "rmc1, rows_scale 0.5. Planted CPU, 8 cores, cpu, 4 threads, commit 0123456789ab+, "
        "2026-01-02."
    )


def test_what_the_name_says_is_not_said_again():
    (group,) = groups(sources(result(SOME), result(SOME, host=host(threads=1))))
    assert context(group) == (
        "rmc1, rows_scale 0.5. 4 threads: Planted CPU, 8 cores, cpu, commit 0123456789ab, "
        "2026-01-02; 1 thread: Planted CPU, 8 cores, cpu, commit 0123456789ab, 2026-01-02."
    )


def test_notes_of_all_are_there_once_and_others_say_whose_they_are():
    own = {"notes": ("a note of the result", "another"), "host": host("Other CPU", load=1.5)}
    (group,) = groups(sources(result(SOME), result(SOME, **own)))
    assert notes(group) == [
        "a note of the result",
        "Other CPU, 8 cores: 1.5 other processes ran when it began: a shared machine",
        "Other CPU, 8 cores: another",
    ]


def test_differences():
    found = differences([result(SOME), result(SOME, host=host(threads=1), matmul="onednn")])
    assert found == {"threads": ("4", "1"), "float32 products": ("default", "onednn")}
