"""The lines that the bench prints, one for each row of its figures."""

from __future__ import annotations

from typing import Any


def heading(figures: dict[str, Any]) -> str:
    return (
        "S-S-A against plain sampling (euler, CFG), full-size U-Nets with random weights\n"
        f"{figures['device']}, {figures['threads']} threads; {figures['host']}, torch {figures['torch']}, "
        f"{figures['attention']}; load before the run {figures['load_before']:.1f} on {figures['cores']} cores"
    )


def head(plan: Any, dtype: str) -> str:
    """The heading of one model's cells."""
    return (
        f"{plan.model}: {dtype}, {plan.latent}x{plan.latent} latents, {plan.steps} steps a run\n"
        "batch  foreground  reference             wall  interval     cpu   again  rounds  floor  plain s"
        "    peak MiB (plain)  levels kept"
    )


def row(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    floor = "     " if row["floor"] is None else f"{row['floor']:5.2f}"
    kept = f"{row['levels_kept']} of {row['steps']}" if row["levels_kept"] else ""
    return (
        f"{row['batch']:5}  {row['foreground']:10.0%}  {row['reference']:20}  {row['wall_ratio']:4.2f}  "
        f"{low:.2f}-{high:.2f}  {row['cpu_ratio']:5.2f}  {row['plain_again']:6.3f}  {row['rounds']:6}  {floor}  "
        f"{row['plain_seconds']:7.2f}  {row['peak_mib']:10.0f} ({row['plain_peak_mib']:.0f})  {kept}{_not_narrow(row)}"
    )


def _not_narrow(row: dict[str, Any]) -> str:
    return "" if row["narrow"] else "  (its interval stayed wider than 5 %)"


def training(row: dict[str, Any]) -> str:
    return (
        f"{row['model']}: a pre-training step of the subject encoder over the U-Net's own forward and backward, batch "
        f"{row['batch']}: {_ratio(row)}, arithmetic alone {row['floor']:.2f}"
    )


def tuning(row: dict[str, Any]) -> str:
    parts = ", ".join(f"{name} {seconds:.3f}" for name, seconds in row["parts"].items())
    return (
        f"{row['model']}: a step of Subject Tuning over the U-Net's own forward and backward of its two rows: "
        f"{_ratio(row)}\n  {row['steps']} steps took {row['seconds']:.1f} s, peak {row['peak_mib']:.0f} MiB; "
        f"seconds of a step by part (on a CPU, of all threads): {parts}"
    )


def _ratio(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    return (
        f"{row['wall_ratio']:.2f} ({low:.2f}-{high:.2f}, cpu {row['cpu_ratio']:.2f}, plain again "
        f"{row['plain_again']:.3f}, plain {row['plain_seconds']:.2f} s){_not_narrow(row)}"
    )


def way(row: dict[str, Any]) -> str:
    error = "" if row["error"] is None else f"  error {row['error']:.0e}"
    return (
        f"{row['model']}: {row['tokens']} tokens, {row['channels']} channels, {row['foreground']:.0%}: "
        f"{row['way']:28} {row['milliseconds']:8.2f} ms, cpu {row['cpu_milliseconds']:8.2f}{error}"
    )


def level(row: dict[str, Any]) -> str:
    rounded = "the same" if row["same"] else "rounded in another way"
    return (
        f"{row['model']}: the reference pass for {row['levels']} levels at once: {row['seconds_a_level']:.3f} s "
        f"a level, cpu {row['cpu_seconds_a_level']:.3f}; features {rounded}"
    )
