"""What training has changed in the tables of an exported model, as deltas for it.

Shapes: n rows, D embedding dim.
"""

import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from fastdlrm.config import from_tree
from fastdlrm.contracts.delta import DELTAS, Delta, delta_path, read_delta, sequences, write_delta
from fastdlrm.contracts.exported import ExportedManifest
from fastdlrm.contracts.manifest import RunManifest, read_manifest, verify_files
from fastdlrm.errors import ExportError
from fastdlrm.export.model import MLP, TABLES
from fastdlrm.export.tables import CHUNK_ROWS, StoredTables, open_tables, replace_rows, stored_rows
from fastdlrm.model.config import ModelConfig
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.layout import layout_of

MAX_DELTA_ROWS = 1 << 18
"""Of one delta: more are written as several, so that no second copy of a table is made."""


def write_fresh_rows(
    folder: Path, run: RunManifest, model: DLRM, *, tables_only: bool = False
) -> list[Path]:
    """Write deltas for the tables of which a row differs from what the exported model serves.

    Rows are compared as they are stored: a change too small for the model's precision makes none.

    Args:
        folder: The exported model; the deltas go into its folder of deltas.
        run: What the model was trained as.
        model: The same model, trained further, on the CPU.
        tables_only: Whether to leave MLPs that differ as the exported model has them.

    Returns:
        The deltas written, in order; none where all rows are the same.

    Raises:
        ExportError: It is another model, a delta before is missing or damaged, or the MLPs differ.
    """
    manifest = read_manifest(folder, ExportedManifest, ExportError)
    verify_files(folder, manifest, ExportError)
    _require_same_encoding(folder, manifest, run)
    if not tables_only:
        _require_same_mlps(folder, model)
    config = from_tree(manifest.config["model"], ModelConfig, str(folder))
    layout = layout_of(config, manifest.schema, manifest.encoding)
    stored = open_tables(folder / TABLES, config, layout, manifest.table_dtype)
    sequence = _apply_deltas(folder / DELTAS, stored)
    served, tables = stored.state_tensors(), model.tables.state_tensors()
    base = manifest.files[TABLES].sha256
    written = []
    for name, rows in tables.items():
        try:
            changed = _changed(rows, served[name], manifest)
        except ValueError as problem:
            raise ExportError(f"table {name!r} of the run: {problem}") from problem
        for start in range(0, len(changed), MAX_DELTA_ROWS):
            ids = changed[start : start + MAX_DELTA_ROWS]
            sequence += 1
            fresh = rows[torch.from_numpy(ids)].float().numpy()
            delta = Delta(name, ids, fresh, sequence, time.time(), base)
            written.append(write_delta(folder / DELTAS, delta))
    return written


def _changed(rows: Tensor, served: Tensor, manifest: ExportedManifest) -> np.ndarray:
    """Ids of the rows that would be stored otherwise, ascending, int64."""
    found = []
    for start in range(0, len(rows), CHUNK_ROWS):
        stored = stored_rows(rows[start : start + CHUNK_ROWS], manifest.table_dtype)
        differs = (stored != served[start : start + len(stored)]).any(1)
        found.append(torch.nonzero(differs).flatten().numpy() + start)
    return np.concatenate(found).astype(np.int64)


def _apply_deltas(folder: Path, tables: StoredTables) -> int:
    """Bring the private mapping up to the last delta; its sequence number."""
    numbers = sequences(folder)
    if numbers != list(range(1, len(numbers) + 1)):
        raise ExportError(
            f"{folder}: deltas {numbers}; they count from 1 without a gap: bring the missing one"
        )
    for number in numbers:
        delta = read_delta(delta_path(folder, number))
        replace_rows(tables, delta.table, torch.from_numpy(delta.ids), torch.from_numpy(delta.rows))
    return len(numbers)


def _require_same_encoding(folder: Path, manifest: ExportedManifest, run: RunManifest) -> None:
    """An id must mean the same row in both."""
    shapes = [from_tree(m.config["model"], ModelConfig, str(folder)) for m in (run, manifest)]
    is_same = (
        (run.schema, run.encoding) == (manifest.schema, manifest.encoding)
        and shapes[0] == shapes[1]
        and all(manifest.files[name].sha256 == entry.sha256 for name, entry in run.files.items())
    )
    if not is_same:
        raise ExportError(
            f"{folder}: the run encodes raw values otherwise, or its model has another shape; "
            "deltas are for a model that was exported from this very run: export it anew"
        )


def _require_same_mlps(folder: Path, model: DLRM) -> None:
    weights = load_file(folder / MLP)
    now = {n: w for n, w in model.state_dict().items() if not n.startswith("tables.")}
    differing = [n for n, w in weights.items() if n not in now or not torch.equal(w, now[n])]
    if differing:
        raise ExportError(
            f"{folder}: the run's {differing[0]!r} differs from the exported one, and deltas carry "
            "rows of tables alone; export a new version, or pass --tables-only to serve the new "
            "rows under the old MLPs"
        )
