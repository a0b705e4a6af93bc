"""Milliseconds of a lookup by row type on one CPU thread, and torch's own operator on bytes.

In turn, in one process, the same ids, uniform over the rows; all results are float32. `byte` is
torch.ops.quantized.embedding_bag_byte_rowwise_offsets (FBGEMM): D codes, a float32 scale and offset
a row. `mapped` reads the rows of a file, as a server does, where the others lie in large pages.

Usage: python benchmarks/bench_quantized_lookup.py --shape ranking-100k --save
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from results_file import write
from timing import System, conditions, interleave, load_average, medians
from torch import Tensor

from fastdlrm.contracts.exported import TableDtype
from fastdlrm.export.tables import PLAIN, QUANTIZED, map_stacks, row_bytes, write_tables
from fastdlrm.kernels.cpu.pages import advise_large_pages
from fastdlrm.kernels.lookup import pooled_lookup
from fastdlrm.kernels.quantized_lookup import quantized_lookup

NUM_BATCHES = 16
DTYPES: tuple[TableDtype, ...] = ("fp32", "bf16", "int8", "int4")


class Shape(NamedTuple):
    """Tables, rows of each, D, ids a bag, samples."""

    tables: int
    rows: int
    dim: int
    ids: int
    samples: int


SHAPES = {
    "ranking-100k": Shape(26, 100_000, 16, 1, 100),
    "ranking-1m": Shape(26, 1_000_000, 16, 1, 100),
    "rmc2": Shape(32, 500_000, 64, 120, 64),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), required=True)
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing, about")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results")
    options = parser.parse_args()
    shape, load = SHAPES[options.shape], load_average()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        systems = drawn(shape, Path(folder))
        samples = interleave(systems, torch.device("cpu"), options.seconds)
    median = medians(samples)
    result: dict[str, Any] = {
        "shape": shape._asdict(),
        "ms_by_system": median,
        "bytes_a_row": {dtype: row_bytes(dtype, shape.dim) for dtype in DTYPES},
        "int8_to_fp32": median["fp32_ms"] / median["int8_ms"],
        "int8_to_byte": median["byte_ms"] / median["int8_ms"],
        "mapped_to_fp32": median["fp32_ms"] / median["mapped_ms"],
        "mapped_to_byte": median["byte_ms"] / median["mapped_ms"],
        **conditions(samples, load),
    }
    for column, value in median.items():
        print(f"{options.shape}: {column} {value:.4f}")
    if options.save:
        print(write(f"quantized-lookup-cpu-{options.shape}", vars(options), samples, result))
    print(json.dumps(result))


def drawn(shape: Shape, folder: Path) -> list[System]:
    """One system a row type, over tables of normal numbers."""
    generator = torch.Generator().manual_seed(0)
    batches = [draw_rows(shape, generator) for _ in range(NUM_BATCHES)]
    single = shape.ids == 1
    edges = torch.arange(shape.tables * shape.samples + 1) * shape.ids
    offsets = None if single else edges
    systems, stacks = [], {}
    for dtype in DTYPES:
        path = folder / dtype
        write_tables(path, tables(shape), dtype)
        (mapped,) = map_stacks(path, [(shape.tables * shape.rows, shape.dim)], dtype)
        stacks[dtype] = in_large_pages(mapped)
        systems.append(System(dtype, lookup(stacks[dtype], dtype, batches, offsets)))
        if dtype == "int8":
            mapped.flatten()[::4096].sum()  # every page is there
            systems.append(System("mapped", lookup(mapped, dtype, batches, offsets)))
    packed = [byte_rows(table) for table in tables(shape).values()]
    wide = [batch.long() for batch in batches]
    systems.append(System("byte", byte_lookup(in_large_pages(torch.cat(packed)), wide, edges)))
    return systems


def tables(shape: Shape) -> dict[str, Tensor]:
    """The same tables every time."""
    generator = torch.Generator().manual_seed(1)
    one = torch.randn(shape.rows, shape.dim, generator=generator)
    return {f"t{t}": one for t in range(shape.tables)}


def draw_rows(shape: Shape, generator: torch.Generator) -> Tensor:
    """Rows of the stack of a batch, table by table, shape (L,), int32."""
    size = (shape.tables, shape.samples * shape.ids)
    ids = torch.randint(shape.rows, size, generator=generator)
    return (ids + torch.arange(shape.tables)[:, None] * shape.rows).flatten().int()


def in_large_pages(rows: Tensor) -> Tensor:
    """A copy in memory of large pages, where the system has them."""
    copy = torch.empty_like(rows)
    advise_large_pages(copy)
    return copy.copy_(rows)


def byte_rows(table: Tensor) -> Tensor:
    """Rows as FBGEMM takes them."""
    packed: Tensor = torch.ops.quantized.embedding_bag_byte_prepack(table)
    return packed


def lookup(
    stack: Tensor, dtype: TableDtype, batches: list[Tensor], offsets: Tensor | None
) -> Callable[[int], Tensor]:
    """The project's own."""

    def step(k: int) -> Tensor:
        rows = batches[k % len(batches)]
        if dtype in PLAIN:
            return pooled_lookup(stack, rows, offsets, dtype=torch.float32)
        return quantized_lookup(stack, rows, offsets, row_dtype=QUANTIZED[dtype])

    return step


def byte_lookup(stack: Tensor, batches: list[Tensor], edges: Tensor) -> Callable[[int], Tensor]:
    """torch's own."""
    operator = torch.ops.quantized.embedding_bag_byte_rowwise_offsets
    last = {"include_last_offset": True}

    def step(k: int) -> Tensor:
        found: Tensor = operator(stack, batches[k % len(batches)], edges, **last)
        return found

    return step


if __name__ == "__main__":
    main()
