"""Which graph of a bundle is fastest on this machine: ``--precision auto``.

Eight bits are three times as fast as float32 on one CPU and slower on another. So the device chooses, not the
exporter: by measuring once, which ``grmp-edge bench`` does as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from grmp_edge.bundle import PRECISIONS, Bundle
from grmp_edge.errors import BackendError
from grmp_edge.runtime.backends import BackendOptions, resolve_provider
from grmp_edge.runtime.bench import BenchConfig, BundleBench, bench_bundle
from grmp_edge.runtime.machine import Remembered, surroundings

__all__ = ["AUTO", "Choice", "choose", "remember"]

AUTO = "auto"

# Whoever asked for a score waits for it. A second for each batch size is five rounds of a small network.
_CONFIG = BenchConfig(runs=5, seconds=1.0)
# A graph less exact than another must save at least this share of the other's time; less is noise.
_GAIN = 0.1


@dataclass(frozen=True)
class Choice:
    """The graph to run, and why."""

    precision: str
    reason: str


def choose(
    bundle: Bundle, options: BackendOptions, progress: Callable[[str], None] = lambda _: None
) -> Choice:
    """The fastest graph here, from the cache or measured now: one that is faster at every batch size.

    Where the provider does not work and ``options`` allow the CPU, the fastest there.

    Raises:
        GrmpError: no graph works here.
    """
    provider = resolve_provider("auto") if options.provider == "auto" else options.provider
    value = _remembered(bundle, provider).value
    # What another version left there is measured anew.
    if value is not None and str(value.get("precision")) in bundle.graphs:
        return Choice(value["precision"], str(value.get("reason", "")))
    if len(bundle.graphs) == 1:
        return Choice(next(iter(bundle.graphs)), "the bundle has no other graph")
    progress("measuring which graph of the bundle is fastest here")
    config = BenchConfig(_CONFIG.batches, _CONFIG.runs, options.threads, _CONFIG.seconds)
    try:
        return remember(bundle, provider, bench_bundle(bundle, config, provider=options.provider))
    except BackendError:
        if not options.allow_cpu:
            raise
        return choose(bundle, replace(options, provider="cpu", allow_cpu=False), progress)


def remember(bundle: Bundle, provider: str, bench: BundleBench) -> Choice:
    """Choose by what was measured with ``provider``, and keep the choice for :func:`choose`.

    On a CPU processor time decides, which other programs hardly disturb.
    """
    times: dict[str, dict[int, float]] = {}
    for timing in bench.timings:
        ratio = timing.cpu_ratio if provider == "cpu" else timing.ratio
        times.setdefault(timing.name, {})[timing.batch] = ratio
    # From the most exact on: a less exact graph has to earn its place.
    known = [name for name in PRECISIONS if name in times]
    best, *others = known or list(times)
    for other in others:
        if all(times[other][batch] <= (1 - _GAIN) * ratio for batch, ratio in times[best].items()):
            best = other
    shares = {
        name: {batch: ratio / times[best][batch] for batch, ratio in ratios.items()}
        for name, ratios in times.items()
        if name != best
    }
    reasons = [
        f"{name} takes {', '.join(f'{share:.2f}' for share in own.values())} "
        f"of its time at batch {', '.join(map(str, own))}"
        for name, own in shares.items()
    ]
    if any(share < 1 for own in shares.values() for share in own.values()):
        reasons.append(f"a less exact graph must take at most {1 - _GAIN:.2f} at each")
    reasons += [f"{name} is refused here: {reason}" for name, reason in bench.refused.items()]
    choice = Choice(best, "; ".join(reasons) or "the bundle has no other graph")
    _remembered(bundle, provider).store(asdict(choice))
    return choice


def _remembered(bundle: Bundle, provider: str) -> Remembered:
    graphs = {name: bundle.graph_digest(name) for name in bundle.graphs}
    return Remembered("choices", {"graphs": graphs, **surroundings(provider)})
