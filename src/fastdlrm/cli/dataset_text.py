"""The statistics of a dataset as tables of plain text, one line a feature."""

from collections.abc import Sequence

from fastdlrm.data.dataset_statistics import DatasetStatistics, DenseSummary, SparseSummary
from fastdlrm.data.distribution import QUANTILES
from fastdlrm.data.drift import Drift
from fastdlrm.data.lookups import CACHE_SHARES
from fastdlrm.data.sparse_statistics import LENGTH_QUANTILES

_MOST_TEXT = 24


def dataset_text(statistics: DatasetStatistics) -> str:
    """What a dataset holds, for a terminal.

    Drift and unseen ids are those of test, without test those of validation.
    """
    rows = sum(split.num_rows for split in statistics.splits.values())
    parts = [
        f"{statistics.name}: {rows:,} rows, {len(statistics.dense)} dense and "
        f"{len(statistics.sparse)} sparse features, {len(statistics.tables)} tables",
        _splits(statistics),
        _inputs(statistics),
    ]
    held_out = next((name for name in ("test", "validation") if name in statistics.splits), "")
    if statistics.sparse:
        parts += [_sparse(statistics, held_out), _tables(statistics)]
    if bags := [feature for feature in statistics.sparse if feature.is_bag]:
        parts.append(_bags(bags))
    if statistics.dense:
        parts.append(_dense(statistics.dense, held_out))
    if held_out:
        parts.append(
            f"drift: Jensen-Shannon distance of {held_out} from train, 0 to 1 (in brackets what to "
            "expect by chance)"
        )
    return "\n\n".join(parts)


def _splits(statistics: DatasetStatistics) -> str:
    lines = []
    for name, split in statistics.splits.items():
        rates = [run.num_positives / run.num_rows for run in split.runs]
        order = f"in input order: {min(rates):.4f} to {max(rates):.4f}" if rates else "shuffled"
        rate = split.num_positives / split.num_rows
        lines.append(
            [name, f"{split.num_rows:,}", f"{split.num_positives:,}", f"{rate:.4f}", order]
        )
    return _table(("split", "rows", "positives", "label rate", "along it"), lines, left=(0, 4))


def _inputs(statistics: DatasetStatistics) -> str:
    lines = []
    for file in statistics.inputs:
        known = file.num_positives is not None
        positives = f"{file.num_positives:,}" if known else "not kept"
        rate = f"{(file.num_positives or 0) / file.num_rows:.4f}" if known else ""
        bad = f"{file.num_bad_rows:,}"
        lines.append([_short(file.name), f"{file.num_rows:,}", bad, positives, rate])
    return _table(("input file", "rows", "bad rows", "positives", "label rate"), lines)


def _sparse(statistics: DatasetStatistics, held_out: str) -> str:
    lines = []
    for feature in statistics.sparse:
        train, other = feature.splits["train"], feature.splits.get(held_out)
        top = feature.top[0] if feature.top else None
        text = "" if top is None else f"{_value(top.value, top.id)} {top.shares['train']:.1%}"
        unseen = other.unseen_share if other else None
        lines.append(
            [
                feature.name,
                feature.table,
                f"{train.num_distinct:,}",
                f"{train.missing_share:.1%}",
                f"{train.out_of_vocabulary_share:.1%}",
                f"{other.out_of_vocabulary_share:.1%}" if other else "",
                "" if unseen is None else f"{unseen:.1%}",
                _drift(other.drift if other else None),
                text,
            ]
        )
    header = ("sparse feature", "table", "ids", "missing", "out of vocabulary")
    where = held_out or "held out"
    more = (f"in {where}", f"unseen in {where}", "drift", "most frequent")
    return _table((*header, *more), lines, left=(0, 1, 8))


def _tables(statistics: DatasetStatistics) -> str:
    lines = []
    named = [(table.name, table.popularity) for table in statistics.tables]
    if len(named) > 1 and statistics.popularity is not None:
        named.append(("all tables", statistics.popularity))
    for name, found in named:
        hits = [f"{hit:.1%}" for hit in found.cache_hits]
        used = f"{found.num_used_rows / found.num_rows:.1%}"
        lines.append([name, f"{found.num_rows:,}", used, f"{found.num_lookups:,}", *hits])
    sizes = [f"hits of {share:.4g}" for share in (100 * share for share in CACHE_SHARES)]
    header = ("table", "rows", "used", "lookups in train", *(f"{size} %" for size in sizes))
    return _table(header, lines)


def _bags(bags: Sequence[SparseSummary]) -> str:
    lines = []
    for feature in bags:
        for name, split in feature.splits.items():
            if split.lengths is not None:
                spread = [f"{length:,}" for length in split.lengths.quantiles]
                mean, maximum = f"{split.lengths.mean:.2f}", f"{split.lengths.maximum:,}"
                empty = f"{split.missing_share:.1%}"
                lines.append([feature.name, name, empty, mean, *spread, maximum])
    header = ("bag", "split", "empty", "mean ids", *_percentiles(LENGTH_QUANTILES), "max")
    return _table(header, lines, left=(0, 1))


def _dense(dense: Sequence[DenseSummary], held_out: str) -> str:
    shown = [place for place, share in enumerate(QUANTILES) if share in (0.01, 0.5, 0.99)]
    lines = []
    for feature in dense:
        train, other = feature.splits["train"], feature.splits.get(held_out)
        found = train.distribution
        mean = 0.0 if abs(found.mean) < 1e-6 * found.std else found.mean  # rounding noise
        numbers = [mean, found.std, found.minimum]
        numbers += [*(found.quantiles[place] for place in shown), found.maximum, feature.fill]
        lines.append(
            [
                feature.name,
                feature.transform,
                *(f"{number:.4g}" for number in numbers),
                f"{train.fill_share:.1%}",
                _drift(other.drift if other else None),
            ]
        )
    spread = ("mean", "std", "min", *_percentiles([QUANTILES[place] for place in shown]), "max")
    header = ("dense feature", "transform", *spread, "fill", "at fill", "drift")
    return _table(header, lines, left=(0, 1))


def _percentiles(shares: Sequence[float]) -> list[str]:
    return [f"p{100 * share:.3g}" for share in shares]


def _drift(found: Drift | None) -> str:
    return "" if found is None else f"{found.distance:.3f} ({found.chance:.3f})"


def _value(value: str | None, row: int) -> str:
    return f"row {row}" if value is None else repr(_short(value))


def _short(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else text[: _MOST_TEXT - 1] + "…"


def _table(
    header: Sequence[str], lines: Sequence[Sequence[str]], left: Sequence[int] = (0,)
) -> str:
    """Columns aligned to the right, but for those in `left`; empty ones are left out."""
    table = [header, *lines]
    shown = [i for i in range(len(header)) if any(line[i] for line in lines)]
    widths = {i: max(len(line[i]) for line in table) for i in shown}
    return "\n".join(
        "  ".join(
            line[i].ljust(widths[i]) if i in left else line[i].rjust(widths[i]) for i in shown
        ).rstrip()
        for line in table
    )
