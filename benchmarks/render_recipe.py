"""Tables of `bench_recipe.py`'s results."""

from typing import Any

from results_file import RESULTS, load, where

PLAIN, PRESET = "plain DLRM", "preset"
NOT_MEASURED = "Not measured yet: `python benchmarks/bench_recipe.py`, see its docstring."


def recipe_test() -> str:
    """The presets and the plain DLRM on test."""
    lines = [
        "| data | model | test AUC | log loss | AUC, to plain | log loss, to plain |",
        "|---|---|---|---|---|---|",
    ]
    notes = []
    for path in sorted(RESULTS.glob("recipe-*.json")):
        content = load(path.stem)
        for line in content["result"]["lines"]:
            if line["split"] == "test":
                name = path.stem.removeprefix("recipe-")
                cells = [name, line["variant"], f"{line['auc']:.4f}", f"{line['log_loss']:.4f}"]
                cells += [gap(line, metric, PLAIN) for metric in ("auc", "log_loss")]
                lines.append(f"| {' | '.join(cells)} |")
        if best := content["config"].get("best_auc"):
            notes.append(f"The best AUC that any model of the generated log has is {best:.4f}.")
    return "\n".join([*lines, "", *notes]).rstrip() if len(lines) > 2 else NOT_MEASURED


def recipe_adult() -> str:
    """Choices on adult."""
    return choices("recipe-adult")


def recipe_criteo_sample() -> str:
    """Choices on criteo-sample."""
    return choices("recipe-criteo-sample")


def recipe_criteo_generated() -> str:
    """Choices on a generated log."""
    return choices("recipe-criteo-generated")


def choices(name: str) -> str:
    """Every variant on validation."""
    if not (RESULTS / f"{name}.json").is_file():
        return NOT_MEASURED
    content = load(name)
    lines = [
        "| axis | choice | AUC | log loss | log loss, to the preset | to the plain DLRM |",
        "|---|---|---|---|---|---|",
    ]
    found = [line for line in content["result"]["lines"] if line["split"] == "validation"]
    axes = list(dict.fromkeys(line["axis"] for line in found))
    for line in sorted(found, key=lambda line: axes.index(line["axis"])):
        cells = [line["axis"], line["variant"], f"{line['auc']:.4f}", f"{line['log_loss']:.4f}"]
        cells += [gap(line, "log_loss", end) for end in (PRESET, PLAIN)]
        lines.append(f"| {' | '.join(cells)} |")
    num_seeds = len({sample["seed"] for sample in content["samples"]})
    return "\n".join([*lines, "", f"{num_seeds} seeds. {where(name)}"])


def gap(line: dict[str, Any], metric: str, end: str) -> str:
    """A difference with its interval, in bold where it does not hold 0; nothing to itself."""
    if line["variant"] == end:
        return ""
    mean, half = (line[f"{metric} - {end}"][k] for k in ("mean", "half"))
    text = f"{mean:+.4f} ± {half:.4f}"
    return f"**{text}**" if abs(mean) > half else text
