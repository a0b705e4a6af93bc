"""What narrow tables cost in AUC, on a generated log: widths for a budget of bytes.

Zeros behind a narrow table's numbers, or a projection, beside tables that are all as wide.

Usage: python benchmarks/bench_mixed_dims.py [ROWS] [SEED ...]
"""

from bench_compression import OVERRIDES, PRESET, THRESHOLD, compare

from fastdlrm.config import load_config
from fastdlrm.train.recipe import Recipe

SHARES = (2, 4, 8)
"""All tables together take one byte in so many."""


def ways(sizes: dict[str, int]) -> dict[str, tuple[str, ...]]:
    """By name, overrides of the preset."""
    dim = load_config(PRESET, Recipe, OVERRIDES).model.embedding_dim
    whole = 4 * dim * sum(sizes.values())
    found: dict[str, tuple[str, ...]] = {"plain": ()}
    for share in SHARES:
        rule = f"budget_bytes = {whole // share}, threshold_rows = {THRESHOLD}"
        widths = f"model.mixed_dims={{{rule}}}"
        rounded = f"model.mixed_dims={{{rule}, round_to_power_of_two = true}}"
        found[f"padded-{share}"] = (widths,)
        found[f"projected-{share}"] = (widths, "model.table_projection=true")
        found[f"projected_powers-{share}"] = (rounded, "model.table_projection=true")
    return found


if __name__ == "__main__":
    compare("mixed-dims", ways)
