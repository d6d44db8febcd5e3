"""Look at every model of timm and torchvision, and write what was found: `python -m tests.zoo`.

A run that stops goes on where it was. Models are looked at in processes of their own, each of which ends after some
models, so that memory stays bounded.
"""

import argparse
import fnmatch
import multiprocessing
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from zoo import table
from zoo.models import subjects

PATH = Path(__file__).with_name("blocks.csv")
MODELS_PER_PROCESS = 24
LONGEST = 900
"""Seconds after which a model is given up."""


def main():
    """Run what is missing, and sum up."""
    parser = argparse.ArgumentParser(description="Look at every model of timm and torchvision.")
    parser.add_argument("--models", default="*", help="a pattern of names, such as 'resnet*'")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--again", action="store_true", help="also models that the table has")
    parser.add_argument("--table", type=Path, default=PATH)
    parser.add_argument("--graphs", type=Path, help="a folder that keeps captured graphs: they are not captured again")
    options = parser.parse_args()
    lines = table.read(options.table)
    chosen = [one for one in subjects() if fnmatch.fnmatch(one.name, options.models)]
    missing = [one for one in chosen if options.again or (one.library, one.name) not in lines]
    print(f"{len(chosen)} models, {len(missing)} to look at")
    if missing:
        run(missing, lines, options)
    summarise([lines[one.library, one.name] for one in chosen if (one.library, one.name) in lines])


def run(missing, lines, options):
    """Look at models in processes of their own, and tell of each."""
    chunks = [missing[start : start + MODELS_PER_PROCESS] for start in range(0, len(missing), MODELS_PER_PROCESS)]
    done = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        # Threads, each with one process after the other: a process that dies takes one model with it, and no more.
        for finished in as_completed([pool.submit(look_at, chunk, lines, options.graphs) for chunk in chunks]):
            done += finished.result()
            table.write(options.table, lines)
            print(f"{done} of {len(missing)} looked at", flush=True)


def look_at(chunk, lines, folder):
    """Look at a few models, one after the other in one process; return their number."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, context)
    for one in chunk:
        kept = None if folder is None else folder / f"{one.library}-{one.name}.graph"
        key = one.library, one.name
        try:
            line = pool.submit(table.line_of, *key, kept, lines.get(key)).result(timeout=LONGEST)
        except (BrokenProcessPool, TimeoutError) as error:
            why = "took too long" if isinstance(error, TimeoutError) else "died, for want of memory perhaps"
            line = table.Line(one.library, "", one.name, "", note=f"its process {why}")
            for process in list(pool._processes.values()):
                process.kill()
            pool = ProcessPoolExecutor(1, context)
        lines[key] = line
        verdict = "" if line.declared == line.blocks else f", DECLARED {line.declared}"
        seconds = f"{line.capture_seconds:.1f} + {line.detection_seconds:.2f} s"
        print(f"{one.library}/{one.name}: {line.blocks} blocks{verdict}, {line.nodes} nodes, {seconds} {line.note}")
    pool.shutdown()
    return len(chunk)


def summarise(lines):
    """Print how many models were captured, and how many agree with what their code declares."""
    captured = [line for line in lines if line.blocks >= 0]
    agree = [line for line in captured if line.blocks == line.declared]
    judged = [line for line in captured if line.declared >= 0]
    print(f"captured {len(captured)} of {len(lines)}; {len(agree)} of {len(judged)} agree with their code")
    for line in lines:
        if line.blocks < 0 or (line.declared >= 0 and line.blocks != line.declared):
            print(f"  {line.library}/{line.model}: declared {line.declared}, found {line.blocks} {line.note}")
    if len({line.nodes for line in captured}) > 1:
        for what, seconds in (("capture", "capture_seconds"), ("detection", "detection_seconds")):
            median = statistics.median(getattr(line, seconds) for line in captured)
            print(f"{what}: median {median:.3f} s, grows as nodes ** {table.growth(captured, seconds):.2f}")


if __name__ == "__main__":
    main()
