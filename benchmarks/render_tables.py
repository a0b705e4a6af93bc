"""Write the README's tables from benchmarks/results: the text between its `table` markers.

With --check nothing is written, and the exit status says whether the README is up to date.
"""

import json
import re
import statistics
import sys
from typing import Any

from results_file import RESULTS, ROOT

README = ROOT / "README.md"
YARDSTICKS = {
    "criteo-sample": "logistic regression 0.7072 / 0.1400, LightGBM 0.6963 / 0.1411",
    "adult": "logistic regression 0.9198 / 0.2910, LightGBM 0.9276 / 0.2771",
}


def load(name: str) -> dict[str, Any]:
    """One result file."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return content


def accuracy() -> str:
    """Test metrics on public data."""
    lines = [
        "| data | test AUC | log loss | calibration | AUC / log loss of others |",
        "|---|---|---|---|---|",
    ]
    for preset, others in YARDSTICKS.items():
        samples = load(f"accuracy-{preset}")["samples"]

        def shown(name: str, samples: list[dict[str, float]] = samples) -> str:
            values = [s[name] for s in samples]
            return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"

        cells = [preset, shown("auc"), shown("log_loss"), shown("calibration"), others]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    lines.append(f"Means and standard deviations over five seeds. {_where('accuracy-adult')}")
    return "\n".join(lines)


def pipeline() -> str:
    """Rates of the stages, and their memory where it was measured."""
    stages = ("generate", "prepare")
    lines = ["| stage | rows/s | peak memory |", "|---|---|---|"]
    for name in stages:
        median = load(name)["median"]
        peak = median.get("peak_rss_bytes")
        memory = f"{peak / 2**30:.2f} GiB" if peak else "not measured"
        lines.append(f"| {name} | {median['rows_per_s']:,.0f} | {memory} |")
    lines.append("")
    lines.append(
        "Medians of whole runs on 2 M rows of gzipped TSV in 4 files; `prepare --memory 1GiB`. "
        + " ".join(dict.fromkeys(map(_where, stages)))
    )
    return "\n".join(lines)


def _where(name: str) -> str:
    host = load(name)["host"]
    return f"{host['cpu']}, {host['cores']} cores, {host['date']}, commit {host['commit']}."


def main() -> None:
    text = README.read_text()
    for name, render in (("accuracy", accuracy), ("pipeline", pipeline)):
        block = f"<!-- table {name} -->\n{render()}\n<!-- end {name} -->"
        pattern = rf"<!-- table {name} -->.*<!-- end {name} -->"
        text, count = re.subn(pattern, lambda _, block=block: block, text, flags=re.DOTALL)
        if count != 1:
            sys.exit(f"README.md: {count} places for table {name}, wanted 1")
    if "--check" in sys.argv:
        sys.exit(text != README.read_text())
    README.write_text(text)


if __name__ == "__main__":
    main()
