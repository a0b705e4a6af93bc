"""Every preset by every sub-command of `fastdlrm bench` on this machine's CPU, with --quick.

    python benchmarks/run_study.py
    python benchmarks/run_study.py --only rmc1 --only rmc2-batch --out TRIAL --minutes 14

Each run leaves OUT/bench-cpu-PRESET-SUBCOMMAND[-VARIANT].json; at the end `fastdlrm bench compare`
says what more threads bring RMC1, and `fastdlrm report` draws all that lies there to
OUT/report-cpu.html. Runs follow one another: they are timings. Tables are as short as the scale
beside each preset makes them, and the scale stands in every result.
"""

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shapes import MULTI_HOT

RESULTS = Path(__file__).resolve().parent / "results"
WIDTH, LAST = 110, 8
"""Of what is printed of a command, in letters; lines of one that failed."""
HASHED = "data.sparse.0.encoding=hash"
"""Ids of random data are rows; a vocabulary would have to be fitted."""
BAGS = ", ".join(
    f'{{features=["C{place}"], min_ids={ids}, max_ids={ids}}}'
    for place, ids in enumerate(MULTI_HOT, 1)
)


@dataclass(frozen=True)
class Model:
    """A preset as it is measured.

    Attributes:
        name: Of the preset.
        rows_scale: Factor on the rows of its tables, which then take 60 to 500 MB.
        overrides: Of its config.
        bounded: Options of latency-bounded.
        batches: Sizes for operators, and the last for the roofline; those of --quick unless named.
    """

    name: str
    rows_scale: float
    overrides: tuple[str, ...] = ()
    bounded: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()


WHOLE = ("--batches", "1024")
"""B that cuts no query, besides the static one: two servers, not three."""
SMALL = (*WHOLE, "--sizes", "fixed:100")
"""Queries of models that take some 0.1 ms a sample and more."""
MODELS = (
    Model("rmc1", 0.1),
    Model("rmc2", 0.1),
    Model("rmc3", 0.15),
    Model("rmc1-paper", 1.0, bounded=(*WHOLE, "--sla-ms", "100")),
    Model("ncf", 1.0, bounded=WHOLE),
    Model("wnd", 0.1, bounded=SMALL),
    Model(
        "criteo-kaggle",
        0.2,
        overrides=(HASHED, "data.sparse.0.max_rows=1300000"),
        bounded=(*WHOLE, "--sla-ms", "25"),
    ),
    Model("criteo-terabyte", 0.006, overrides=(HASHED,), bounded=(*WHOLE, "--sla-ms", "25")),
    Model(
        "mlperf-dlrm-v1",
        0.0008,
        overrides=(HASHED,),
        bounded=(*SMALL, "--sla-ms", "60"),
        batches=(1, 16, 64),
    ),
    Model(
        "mlperf-dcnv2",
        0.0008,
        overrides=(HASHED, "data.sparse.0.bag=true", f"random={{sparse=[{BAGS}]}}"),
        bounded=(*SMALL, "--sla-ms", "200"),
        batches=(1, 16, 64),
    ),
)
"""Of Criteo Kaggle's 26 tables of 1.3 M rows as many are in all as it has values."""

SUBCOMMANDS = ("operators", "colocate", "latency-bounded", "batch", "roofline")

VARIANTS = (
    ("rmc1", "operators", "wide", ("--set", "model.top_mlp=[1024,256]")),
    ("rmc1", "operators", "wider", ("--set", "model.top_mlp=[4096,1024]")),
    ("rmc1", "batch", "1-thread", ("--threads", "1")),
    ("rmc1", "latency-bounded", "strict", ("--sla-ms", "30")),
    ("rmc3", "latency-bounded", "strict", ("--sla", "low")),
)
"""Preset, sub-command, what the file's name adds, options: what the papers' figures vary, and
what is compared."""
COMPARED = ("rmc1-batch-1-thread", "rmc1-batch")
"""The second to the first."""


@dataclass(frozen=True)
class Run:
    """One call of `fastdlrm bench`.

    Attributes:
        name: Of the result, without `bench-cpu-`.
        words: After `fastdlrm bench`, without --out.
    """

    name: str
    words: tuple[str, ...]


def runs() -> Iterator[Run]:
    """All there are: first what varies, then model by model."""
    models = {model.name: model for model in MODELS}
    for preset, name, variant, options in VARIANTS:
        yield _run(models[preset], name, variant, options)
    for model in MODELS:
        for name in SUBCOMMANDS:
            yield _run(model, name)


def _run(model: Model, subcommand: str, variant: str = "", options: tuple[str, ...] = ()) -> Run:
    words = [subcommand, "--model", model.name, "--rows-scale", f"{model.rows_scale:g}", "--quick"]
    words += model.bounded if subcommand == "latency-bounded" else ["--device", "cpu"]
    if subcommand == "colocate":
        words += ["--tables", "private"]
    if model.batches and subcommand in ("operators", "roofline"):
        wanted = model.batches if subcommand == "operators" else model.batches[-1:]
        words += ["--batches", ",".join(map(str, wanted))]
    for override in model.overrides:
        words += ["--set", override]
    name = "-".join(filter(None, (model.name, subcommand, variant)))
    return Run(name, (*words, *options))


def call(words: list[str], folder: Path) -> tuple[str, bool]:
    """Run fastdlrm and print how long it took.

    Args:
        words: After `fastdlrm`.
        folder: Where it runs: pages name files as they are given.

    Returns:
        What it said, and whether it succeeded.
    """
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "fastdlrm", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=folder,
    )
    print(f"{time.monotonic() - began:6.1f} s  fastdlrm {shlex.join(words)}"[:WIDTH], flush=True)
    if done.returncode:
        print(
            f"          failed with {done.returncode}:", *done.stdout.splitlines()[-LAST:], sep="\n"
        )
    return done.stdout, not done.returncode


def main() -> int:
    """Run all; 1 where a run failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="preset, sub-command, or both: rmc1-batch"
    )
    parser.add_argument("--minutes", type=float, help="start no run later than so long from now")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    began, has_all = time.monotonic(), True
    for run in runs():
        if args.only and not {run.name, run.words[0], run.words[2]} & set(args.only):
            continue
        if args.minutes and time.monotonic() - began > 60 * args.minutes:
            print(f"         left out: {run.name}")
            has_all = False
        else:
            words = ["bench", *run.words, "--out", f"bench-cpu-{run.name}.json"]
            has_all &= call(words, args.out)[1]
    found = sorted(path.name for path in args.out.glob("bench-cpu-*.json"))
    compared = [f"bench-cpu-{name}.json" for name in COMPARED]
    if set(compared) <= set(found):
        text, is_done = call(["bench", "compare", *compared], args.out)
        print(text)
        has_all &= is_done
    page = ["report", *found, "--out", "report-cpu.html"]
    has_all &= call([*page, "--title", "Every preset on one CPU"], args.out)[1]
    print(f"{time.monotonic() - began:6.1f} s  in all", flush=True)
    return 0 if has_all else 1


if __name__ == "__main__":
    sys.exit(main())
