"""The page of a report: results of benchmarks, runs and evaluations, one section a kind."""

from collections.abc import Callable, Sequence

from fastdlrm.contracts.bench_result import BenchResult
from fastdlrm.report.bench_batch import batch_section
from fastdlrm.report.bench_colocation import colocation_section
from fastdlrm.report.bench_general import general_section
from fastdlrm.report.bench_latency_bounded import latency_bounded_section
from fastdlrm.report.bench_operators import operator_section
from fastdlrm.report.bench_roofline import roofline_section
from fastdlrm.report.page import Block, Cell, Number, Page, Section, Table
from fastdlrm.report.provenance import Group, groups, machine, short_commit
from fastdlrm.report.run_quality import quality_section
from fastdlrm.report.run_training import training_section
from fastdlrm.report.sources import Sources
from fastdlrm.report.tuning import tuning_section

SECTIONS: dict[str, Callable[[Sequence[Group]], Section]] = {
    "batch": batch_section,
    "operators": operator_section,
    "roofline": roofline_section,
    "colocate": colocation_section,
    "latency-bounded": latency_bounded_section,
}
"""By benchmark, in the order shown; any other has the general table."""

_COLUMNS = (
    "benchmark",
    "model",
    "rows_scale",
    "device",
    "threads",
    "machine",
    "load",
    "commit",
    "started",
)


def study_page(sources: Sources, title: str) -> Page:
    """The page of all that was read."""
    names = dict.fromkeys(source.result.benchmark for source in sources.results)
    order = [*(n for n in SECTIONS if n in names), *(n for n in names if n not in SECTIONS)]
    sections = [Section("Sources", _overview(sources))]
    for name in order:
        found = groups([s for s in sources.results if s.result.benchmark == name])
        made = SECTIONS.get(name)
        sections.append(made(found) if made else general_section(f"Benchmark {name}", found))
    sections += map(tuning_section, sources.studies)
    if sources.runs:
        sections.append(training_section(sources.runs))
    sections.append(quality_section(sources))
    counts = {
        ("benchmark result", "benchmark results"): len(sources.results),
        ("study", "studies"): len(sources.studies),
        ("training run", "training runs"): len(sources.runs),
        ("evaluation", "evaluations"): len(sources.evaluations),
    }
    return Page(
        title=title,
        subtitle=", ".join(f"{n} {names[n > 1]}" for names, n in counts.items() if n),
        sections=[section for section in sections if section.blocks],
    )


def _overview(sources: Sources) -> list[Block]:
    """What was read, a row a file."""
    blocks: list[Block] = []
    if sources.results:
        blocks.append(
            Table(
                columns=("file", *_COLUMNS),
                rows=[[str(source.path), *_cells(source.result)] for source in sources.results],
                text_columns=(0, 1, 2, 4, 6, 8, 9),
            )
        )
    if sources.runs or sources.evaluations or sources.studies:
        rows = [
            [str(run.path), "run", run.manifest.machine, short_commit(run.manifest.commit), ""]
            for run in sources.runs
        ]
        rows += [
            [
                str(s.path),
                "study",
                s.result.machine,
                short_commit(s.result.commit),
                s.result.started[:19],
            ]
            for s in sources.studies
        ]
        rows += [
            [
                f"{e.run}, {e.data}, {e.split}",
                "eval",
                e.machine,
                short_commit(e.commit),
                e.started[:19],
            ]
            for e in sources.evaluations
        ]
        told = ("run", "kind", "machine", "commit", "started")
        blocks.append(Table(columns=told, rows=rows, text_columns=range(5)))
    return blocks


def _cells(result: BenchResult) -> list[Cell]:
    return [
        result.benchmark,
        result.model,
        Number(result.rows_scale, "g"),
        result.device,
        Number(result.host.num_threads, "d"),
        machine(result),
        Number(result.host.load_average, "g"),
        short_commit(result.commit),
        result.started[:19],
    ]
