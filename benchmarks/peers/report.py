"""Writes the tables of the comparison, and checks the promises against the figures."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from figures import markdown, spread

if TYPE_CHECKING:
    from peers.bench import Found

PEERS = Path(__file__).resolve().parents[1] / "requirements.txt"


def report(found: Mapping[Any, Sequence[Found]]) -> str:
    """Markdown: a table for each set, then each promise with the figure that was measured."""
    parts = []
    for of, results in found.items():
        length = "50 to 500" if of.ragged else of.shape[0]
        shape = "x".join(map(str, (length, *of.shape[1:])))
        dtype = str(of.dtype).removeprefix("torch.")
        parts.append(f"### {of.name}: {of.size:,} samples of {shape} {dtype}\n\n{_table(of, results)}")
    lines = [line for of, results in found.items() for line in _promises(of, results)]
    parts.append("### What was promised\n\n" + markdown(["promise", "measured", ""], lines))
    parts.append(f"Peers: {_versions()}; {_processor()}.")
    return "\n\n".join(parts)


def rate(result: Found, step: str = "none") -> float:
    """Median samples/s, 0 if not measured."""
    rates = _rates(result, step)
    return median(rates) if rates else 0.0


def wait_pct(result: Found, step: str) -> float:
    """Median share of the time spent waiting for batches, in percent."""
    return median(100 * one["wait"] / one["seconds"] for one in result.measured[step])


def _rates(result: Found, step: str) -> list[float]:
    return [one["samples"] / one["seconds"] for one in result.measured[step]]


def _table(of: Any, results: Sequence[Found]) -> str:
    best = {kind: max((rate(r) for r in results if r.contender.kind == kind), default=0.0) for kind in _KINDS}
    step = f"with a {of.step_ms:g} ms step"
    head = [
        "batch 64", "samples/s", "x torch", "x memory", "x memcpy", "CPU s per 1,000", "MB",
        f"{step}, samples/s", "wait %", "with a CNN, samples/s", "wait %", "cold, samples/s", "order",
    ]  # fmt: skip
    rows = []
    for result in results:
        if result.fault:
            rows.append((result.contender.name, f"not measured: {result.fault}", *["-"] * (len(head) - 2)))
            continue
        own = rate(result)
        cpu = median(1000 * one["cpu"] / one["samples"] for one in result.measured["none"])
        rows.append(
            (
                result.contender.name,
                spread(_rates(result, "none"), 0),
                *(f"{own / best[kind]:.2f}" if best[kind] else "-" for kind in _KINDS),
                f"{cpu:.3f}",
                f"{result.memory_mb:,.0f}",
                *(text for name in ("simulated", "cnn") for text in _with_step(result, name)),
                _cold(result),
                result.digest[:8] if result.digest else "-",
            )
        )
    return markdown(head, rows)


_KINDS = ("torch", "memory", "limit")


def _with_step(result: Found, step: str) -> tuple[str, str]:
    if not result.measured[step]:
        return "-", "-"
    return f"{rate(result, step):,.0f}", f"{wait_pct(result, step):.1f}"


def _cold(result: Found) -> str:
    if result.cold:
        return spread(result.cold, 0)
    return f"not cold ({100 * result.warm_share:.0f} % stayed cached)" if result.warm_share else "-"


# ---------------------------------------------------------------------------------------------------------
# what was promised
# ---------------------------------------------------------------------------------------------------------


def _promises(of: Any, results: Sequence[Found]) -> list[tuple[str, str, str]]:
    def best(*kinds: str, form: str = "", step: str = "none") -> Found | None:
        fit = [r for r in results if r.contender.kind in kinds and not r.fault and r.measured[step]]
        fit = [r for r in fit if r.contender.settings.get("form", "") == form or not form]
        return max(fit, key=lambda r: rate(r, step), default=None)

    torchs, memory, limit = best("torch"), best("memory"), best("limit")
    files, packed, peer = best("ours", form="tensor_files"), best("ours", form="packed"), best("peer")
    lines: list[tuple[str, str, str]] = []

    def ratio(what: str, mine: Found | None, theirs: Found | None, wanted: float) -> None:
        if mine is None or theirs is None:
            lines.append((f"{of.name}: {what}", "not measured", "open"))
            return
        figure = rate(mine) / rate(theirs)
        names = f"{figure:.2f} ({mine.contender.name} / {theirs.contender.name})"
        lines.append((f"{of.name}: {what}", names, "pass" if figure >= wanted else "**falls short**"))

    wanted = {"12 KB": 30, "150 KB": 12}.get(of.name)
    if wanted:
        ratio(f"tensor files at least {wanted} times torch's DataLoader", files, torchs, wanted)
        ratio("tensor files faster than a TensorDataset in memory", files, memory, 1)
        if of.name == "150 KB":
            ratio("packed at least 0.8 of memcpy", packed, limit, 0.8)
        else:
            ratio("packed at least 5 times a TensorDataset", packed, memory, 5)
        ratio("packed ahead of every peer", packed, peer, 1)
    else:
        ratio("tensor files ahead of torch's DataLoader", files, torchs, 1)
        ratio("tensor files ahead of every peer", files, peer, 1)
    digests = {r.digest for r in results if r.contender.kind == "ours" and not r.fault}
    if digests:
        shown = ", ".join(sorted(str(d)[:8] for d in digests))
        lines.append((f"{of.name}: one order from all engines and formats", shown, _verdict(len(digests) == 1)))
    lines += _waits(of, results)
    trained = best("ours", form="tensor_files", step="cnn")
    if trained is not None:
        figure = (
            f"{trained.contender.name}: {rate(trained, 'cnn'):,.0f} samples/s, waited {wait_pct(trained, 'cnn'):.1f} %"
        )
        lines.append((f"{of.name}: fastest tensor files while a CNN trains", figure, "decides the default"))
    return lines


def _waits(of: Any, results: Sequence[Found]) -> list[tuple[str, str, str]]:
    """Waiting of loaders with workers that alone reach at least 1.25 times the rate of the simulated step."""
    step_rate = 64 / of.step_ms * 1000
    fit = [r for r in results if r.contender.kind == "ours" and r.contender.workers and r.measured["simulated"]]
    fit = [r for r in fit if not r.fault and rate(r) >= 1.25 * step_rate]
    if not fit:
        return []
    worst = max(fit, key=lambda r: wait_pct(r, "simulated"))
    within = sum(wait_pct(r, "simulated") <= 2 for r in fit)
    figure = f"{within} of {len(fit)}; most: {wait_pct(worst, 'simulated'):.1f} % ({worst.contender.name})"
    what = f"{of.name}: with workers, wait at most 2 % of a {of.step_ms:g} ms step that they can feed 1.25 times"
    return [(what, figure, _verdict(within == len(fit)))]


def _verdict(good: bool) -> str:
    return "pass" if good else "**falls short**"


def _versions() -> str:
    """The pinned versions of the peers."""
    lines = [line.partition(";")[0].split("==") for line in PEERS.read_text().splitlines() if "==" in line]
    return ", ".join(f"{name} {version}" for name, version in lines if name not in ("torch", "numpy", "psutil"))


def _processor() -> str:
    """Names of processor and kernel."""
    found = subprocess.run(["lscpu"], capture_output=True, text=True)
    names = [line.split(":", 1)[1].strip() for line in found.stdout.splitlines() if line.startswith("Model name")]
    return f"{names[0] if names else platform.machine()}, {platform.system()} {platform.release().split('-')[0]}"
