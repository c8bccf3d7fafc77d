"""Run the benchmarks: ``python -m benchmarks.speed``. ``make bench`` also writes docs/lab/benchmarks.md and its picture.

``--only fc,cnn`` measures these only. With ``--write`` each result replaces its predecessor in benchmarks/results.json as
soon as it is there, and the page is written from that file at the end; ``--only= --write`` measures nothing and writes the
page anew. ``--quick`` goes through everything in a few steps on small data that need no download, and keeps nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil

from benchmarks import report
from benchmarks.cases import CASES
from benchmarks.report import Result
from benchmarks.sides import QUICK, ROOT, Bench, Plan, prepare, prepare_quick
from trainer.datasets.errors import DatasetError

# Left out: what trains the same loops as cnn-target and vgg-target, the share of the matrix product, which
# tests/test_benchmarks.py covers, and false-alarms, which has its own quick form.
_NOT_QUICK = ("fc", "cnn", "lenet", "vgg", "share", "memory", "lenet-target", "false-alarms")
QUICK_CASES = [name for name in CASES if name not in _NOT_QUICK]
_QUIET = 0.1  # part of the cores; with more, threads wait for each other and ratios say little
RESULTS = ROOT / "benchmarks" / "results.json"
PAGES = ROOT / "docs" / "lab"
ORDER = [
    "fc",
    "cnn",
    "lenet",
    "vgg",
    "cnn-target",
    "lenet-target",
    "vgg-target",
    "vgg-run",
    "sweep",
    "share",
    "memory",
    "recording",
    "equal",
    "start_latency",
    "compare_many",
    "at_scale",
]


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--quick", action="store_true", help="a few steps of everything, to see that it works")
    result.add_argument("--only", type=_names, metavar="NAMES", help=f"of {','.join(CASES)}")
    result.add_argument("--repeats", type=int, choices=range(1, 100), metavar="N", help="of each timing (3 or 7)")
    result.add_argument("--home", type=Path, help="a RUNOFF_HOME for benchmarks that is kept, with its data sets")
    result.add_argument("--runs", type=Path, nargs="+", default=[], metavar="DIR", help="folders of finished vgg runs")
    result.add_argument("--write", action="store_true", help="keep the results and write docs/lab/benchmarks.md")
    return result


def _names(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if unknown := sorted(set(names) - set(CASES)):
        raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}; there are {', '.join(CASES)}")
    return names


@contextmanager
def opened(options: argparse.Namespace) -> Iterator[Bench]:
    """The benchmark's home with its data; a temporary one is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="runoff-bench-") as name:
        home = (options.home or Path(name)).resolve()
        home.mkdir(parents=True, exist_ok=True)
        (home / "runs").mkdir(exist_ok=True)
        if options.quick:
            grey, colour = prepare_quick(home)
            yield Bench(home, grey, colour, None, QUICK, quick=True, run_folders=options.runs)
        else:
            print("Preparing the data sets", flush=True)
            grey, colour, root = prepare(home)
            plan = Plan() if options.repeats is None else Plan(repeats=options.repeats, more_repeats=options.repeats)
            yield Bench(home, grey, colour, root, plan, run_folders=options.runs, found=dict(_kept()))


def _kept() -> dict[str, Result]:
    return report.read_results(RESULTS)


def measure(bench: Bench, names: Sequence[str], *, keep: bool) -> None:
    """Measure the cases in turn, print each result, and keep it where wanted."""
    versions = bench.versions()
    for name in names:
        print(f"== {name}", flush=True)
        other_work = psutil.cpu_percent(interval=1.0) / 100
        if other_work > _QUIET and not bench.quick:
            print(f"  The machine is not quiet: {report.percent(other_work, 0)} of its cores are busy.", flush=True)
        begin = time.monotonic()
        for result in CASES[name](bench):
            result.measured_at = datetime.now(UTC).isoformat(timespec="seconds")
            result.machine, result.other_work = versions, other_work
            bench.found[result.name] = result
            print("\n".join(f"  {line}" for line in _lines(result)), flush=True)
            if keep:
                report.keep_results(RESULTS, {**_kept(), result.name: result})
        print(f"  ({time.monotonic() - begin:.0f} s)", flush=True)


def _lines(result: Result) -> Iterator[str]:
    """A result for the terminal."""
    if result.figure:
        yield f"{result.title}: {result.figure} (n: {result.repeats})"
    for row in result.rows:
        yield "    " + "; ".join(f"{head} {cell}" for head, cell in zip(result.head, row, strict=True) if cell)


def ordered(results: dict[str, Result]) -> dict[str, Result]:
    """The results in the page's order; several vgg runs follow each other."""

    def place(name: str) -> tuple[int, str]:
        kind = "vgg-run" if name.startswith("vgg-run-") else name
        return (ORDER.index(kind) if kind in ORDER else len(ORDER)), name

    return {name: results[name] for name in sorted(results, key=place)}


def main(argv: Sequence[str] | None = None) -> None:
    options = parser().parse_args(argv)
    if options.quick and options.write:
        raise SystemExit("A quick form measures nothing worth keeping: choose --quick or --write.")
    names = options.only if options.only is not None else QUICK_CASES if options.quick else [*CASES]
    if names:
        try:
            with opened(options) as bench:
                measure(bench, names, keep=options.write)
        except DatasetError as error:
            raise SystemExit(f"{error} {error.advice}") from None
    if options.write:
        report.write(PAGES, ordered(_kept()))
        print(f"Written: {PAGES / 'benchmarks.md'}")


if __name__ == "__main__":
    main()
