"""`python -m bench`: run the benchmarks and print their figures as a Markdown table."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
import tempfile
from pathlib import Path

from bench import harness
from bench.node import BenchmarkError

NAMES = ("services", "submit", "memory", "idle", "start")
DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure, side by side with peers and limits.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of: {', '.join(NAMES)} (default: all)")
    parser.add_argument("--runs", type=_positive, default=5, help="runs of each; the medians count (default 5)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one run, to see that it works")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    parser.add_argument("--folder", type=Path, help="where to put files while measuring (default: a temporary one)")
    parsed = parser.parse_args(arguments)
    if unknown := [name for name in parsed.names if name not in NAMES]:
        parser.error(f"there is no benchmark {unknown[0]}; there are: {', '.join(NAMES)}")
    names = parsed.names or list(NAMES)
    options = harness.Options(runs=1 if parsed.quick else parsed.runs, quick=parsed.quick)
    results = []
    for name in names:
        try:
            results.append(_measure(name, options, parsed.folder))
        except BenchmarkError as error:
            print(f"bench {name}: {error}", file=sys.stderr)
            return 1
    text = harness.table(results)
    print(text)
    if parsed.write:
        document = DOCUMENT.read_text("utf-8")
        only = [result.name for result in results] if parsed.names else None
        DOCUMENT.write_text(harness.replace_table(document, text, only=only), "utf-8")
    return 0


def _measure(name: str, options: harness.Options, folder: Path | None) -> harness.Result:
    module = importlib.import_module(f"bench.{name}")
    before = harness.load()
    harness.progress(f"{module.TITLE} (load {before:.2f})")
    with tempfile.TemporaryDirectory(prefix=f"outstation-bench-{name}-", dir=folder) as made:
        figures = asyncio.run(module.run(options, Path(made)))
    return harness.Result(module.TITLE, figures, (before, harness.load()), options.runs)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("it must be 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
