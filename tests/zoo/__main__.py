"""Look at every model of timm and torchvision, and write what was found: `python -m tests.zoo`.

A run that stops goes on where it was. Models are looked at in processes of their own, each of which ends after some
models, so that memory stays bounded.
"""

import argparse
import fnmatch
import multiprocessing
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from zoo import table
from zoo.models import subjects

PATH = Path(__file__).with_name("blocks.csv")
MODELS_PER_PROCESS = 12
SAVE_EVERY = 20


def main():
    """Run what is missing, and sum up."""
    parser = argparse.ArgumentParser(description="Look at every model of timm and torchvision.")
    parser.add_argument("--models", default="*", help="a pattern of names, such as 'resnet*'")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--again", action="store_true", help="also models that the table has")
    parser.add_argument("--table", type=Path, default=PATH)
    options = parser.parse_args()
    lines = table.read(options.table)
    chosen = [one for one in subjects() if fnmatch.fnmatch(one.name, options.models)]
    missing = [one for one in chosen if options.again or (one.library, one.name) not in lines]
    print(f"{len(chosen)} models, {len(missing)} to look at")
    if missing:
        run(missing, lines, options)
    summarise([lines[one.library, one.name] for one in chosen if (one.library, one.name) in lines])


def run(missing, lines, options):
    """Look at models in processes of their own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, max_tasks_per_child=MODELS_PER_PROCESS) as pool:
        runs = {pool.submit(table.line_of, one.library, one.name): one for one in missing}
        for done, finished in enumerate(as_completed(runs), start=1):
            one = runs[finished]
            line = lines[one.library, one.name] = finished.result()
            verdict = "" if line.declared == line.blocks else f", DECLARED {line.declared}"
            print(
                f"[{done}/{len(runs)}] {one.library}/{one.name}: {line.blocks} blocks{verdict}, {line.nodes} nodes,"
                f" {line.capture_seconds:.1f} + {line.detection_seconds:.2f} s {line.note}",
                flush=True,
            )
            if done % SAVE_EVERY == 0 or done == len(runs):
                table.write(options.table, lines)


def summarise(lines):
    """Print how many models were captured, and how many agree with what their code declares."""
    captured = [line for line in lines if line.blocks >= 0]
    agree = [line for line in captured if line.blocks == line.declared]
    judged = [line for line in captured if line.declared >= 0]
    print(f"captured {len(captured)} of {len(lines)}; {len(agree)} of {len(judged)} agree with their code")
    for line in lines:
        if line.blocks < 0 or (line.declared >= 0 and line.blocks != line.declared):
            print(f"  {line.library}/{line.model}: declared {line.declared}, found {line.blocks} {line.note}")
    if captured:
        print(
            f"median capture {statistics.median(line.capture_seconds for line in captured):.1f} s, "
            f"detection {statistics.median(line.detection_seconds for line in captured):.3f} s"
        )


if __name__ == "__main__":
    main()
