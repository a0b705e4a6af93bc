"""A benchmark's result as text for a terminal."""

from typing import Any


def show(result: dict[str, Any]) -> None:
    """Print the systems' times, the floor, the ceilings and where our time goes."""
    print(f"{result['shape']} B={result['batch']} {result['precision']} on {result['device']}")
    for name, value in result["ms_by_system"].items():
        system = name.removesuffix("_ms")
        rate = result["batch"] / value * 1e3
        print(f"  {system:24} {value:9.3f} ms {rate:12,.0f} samples/s {value / result['ms']:6.2f}x")
    print(f"  {'floor':24} {result['floor_ms']:9.3f} ms {result['share_of_floor']:.0%} reached")
    print(f"  {result['quiet_rounds']} of {result['rounds']} rounds undisturbed by other processes")
    print("  ceilings:", ", ".join(f"{k} {v:,.1f}" for k, v in result["ceilings"].items()))
    for kind, value in result["breakdown"]["ms_a_step"].items():
        print(f"    {kind:14} {value:9.3f} ms")
    for name, kind, value, calls in result["breakdown"]["top"]:
        print(f"      {value:9.3f} ms {calls:6.1f} calls  {kind:12} {name}")
