"""Speed as ratios within one run: ours, the obvious way and the bound, interleaved, medians.

Run with `python -m tests.benchmarks`; the tests do not time anything.
"""
