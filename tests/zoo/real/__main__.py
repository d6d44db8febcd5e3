"""Look at one model of every family with real tensors: `python -m tests.zoo.real`.

A run that stops goes on where it was; a family that the table has keeps its model. Families are looked at in processes
of their own, each of which ends after some, so that memory stays bounded.
"""

import argparse
import fnmatch
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from zoo.real import choice, table
from zoo.real.examine import Line, examine

FAMILIES_PER_PROCESS = 8


def main():
    """Run what is missing, and sum up."""
    parser = argparse.ArgumentParser(description="Look at one model of every family with real tensors.")
    parser.add_argument("--models", default="*", help="a pattern of families, such as 'timm/res*'")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--again", action="store_true", help="also families that the table has")
    parser.add_argument("--table", type=Path, default=table.PATH)
    options = parser.parse_args()
    lines = table.read(options.table)
    families = {key: one for key, one in choice.families().items() if fnmatch.fnmatch("/".join(key), options.models)}
    missing = [(key, members) for key, members in families.items() if options.again or key not in lines]
    print(f"{len(families)} families, {len(missing)} to look at", flush=True)
    chunks = [missing[start : start + FAMILIES_PER_PROCESS] for start in range(0, len(missing), FAMILIES_PER_PROCESS)]
    with ThreadPoolExecutor(options.jobs) as pool:
        # Threads, each with one process after the other: a process that dies takes one family with it, and no more.
        for finished in as_completed([pool.submit(look_at, chunk, lines, options.table) for chunk in chunks]):
            finished.result()
    summarise([lines[key] for key in families if key in lines])


def look_at(chunk, lines, path):
    """Look at a few families, one after the other in one process."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, context)
    for key, members in chunk:
        known = lines.get(key)
        try:
            recipe = table.recipe(known) if known and known.input else pool.submit(choice.cheapest, members).result()
            line = pool.submit(examine, recipe).result()
        except BrokenProcessPool:
            line = Line(key[0], "", key[1], "", note="its process died, for want of memory perhaps")
            pool = ProcessPoolExecutor(1, context)
        lines[key] = line
        table.write(dict(lines), path)
        verdict = "passes" if line.passes else "FAILS"
        print(
            f"{'/'.join(key)}: {line.model}, {line.input}, {line.blocks} blocks, {verdict}: lesions change "
            f"{line.least_change}, gradients {line.completeness} apart, {line.seconds} s. {line.note}",
            flush=True,
        )
    pool.shutdown()


def summarise(lines):
    """Print what passes, and what does not."""
    failing = [line for line in lines if not line.passes]
    print(f"{len(lines) - len(failing)} of {len(lines)} families pass")
    for line in failing:
        print(f"  {line.library}/{line.family}: {line.model} {line.note}")


if __name__ == "__main__":
    main()
