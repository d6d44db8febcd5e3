"""Look at models of other libraries, and write what was found: `python -m tests.wild`.

A run that stops goes on where it was. Every model is looked at in a process of its own, with limits of time and memory.
"""

import argparse
import fnmatch
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wild import table, truth
from wild.differences import reason
from wild.processes import forking_context, look_at


def main():
    """Run what is missing, and sum up."""
    parser = argparse.ArgumentParser(description="Look at models of other libraries.")
    parser.add_argument("--library", default="*", help="a library, or a pattern of several")
    parser.add_argument("--models", default="*", help="a pattern of names, such as '*Vi[Tt]*'")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--again", action="store_true", help="also models that the table has")
    parser.add_argument("--table", type=Path, default=table.PATH)
    options = parser.parse_args()
    lines = table.read(options.table)
    chosen = [key for key in installed(options.library) if fnmatch.fnmatch(key[1], options.models)]
    missing = [key for key in chosen if options.again or key not in lines]
    print(f"{len(chosen)} models, {len(missing)} to look at", flush=True)
    run(missing, lines, options)
    summarise([lines[key] for key in chosen if key in lines])


def installed(pattern):
    """Return library and name of every model whose library is installed."""
    found = []
    for library in fnmatch.filter(truth.libraries(), pattern):
        if find_spec(library) is None:
            print(f"{library} is not installed: its models are left out")
            continue
        found += [(library, name) for name in truth.models(library)]
    return found


def run(missing, lines, options):
    """Look at models in processes of their own, and tell of each."""
    context = forking_context({library for library, _ in missing})
    with ThreadPoolExecutor(options.jobs) as pool:
        for finished in as_completed([pool.submit(look_at, context, key) for key in missing]):
            line = finished.result()
            lines[line.library, line.model] = line
            table.write(lines, options.table)
            verdict = "passes" if line.passes else "DIFFERS"
            what = f"{line.found} blocks of {line.declared}, {line.lesions} lesions ({line.zeroed} by hand)"
            far = f"paths {line.completeness}, gradients {line.gradient} apart, identical {line.identical}"
            print(f"{line.library}/{line.model}: {verdict}, {what}, {far}, {line.seconds} s", flush=True)
            if line.note or line.refusal:
                print(f"    {line.refusal} {line.note}", flush=True)


def summarise(lines):
    """Print how many models pass, and what the others have."""
    verdicts = Counter("passes" if line.passes else "refused" if line.refusal else "differs" for line in lines)
    print(f"{len(lines)} models: {dict(verdicts)}")
    for line in lines:
        if not line.passes:
            why = reason(line.library, line.model) or "NO REASON STATED"
            said = line.refusal or line.note
            print(f"  {line.library}/{line.model}: {line.declared} by its code, {line.found} found; {why}. {said}")


if __name__ == "__main__":
    main()
