"""Lines of text files have at most 120 characters, whatever kind of file it is."""

import re
from pathlib import Path

import pytest
from notebooks import NOTEBOOKS, read

ROOT = Path(__file__).parent.parent
LONGEST = 120
KINDS = {".md", ".py", ".pyi", ".toml", ".yml", ".yaml", ".jinja"}
OTHERS = {"LICENSE", ".gitignore", "run"}
SKIPPED = {".git", ".venv", "build", "dist", "node_modules"}
PRAGMA = re.compile(r"\s*# (noqa|type: ignore).*")
"""Left out of the count, as ruff does: it cannot go on on the next line."""


def text_files():
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        made = SKIPPED & {*parts} or any(part.endswith("_cache") for part in parts)
        if path.is_file() and not made and (path.suffix in KINDS or path.name in OTHERS):
            yield path


FILES = list(text_files())


def too_long(lines):
    return [number for number, line in enumerate(lines, 1) if len(line) > LONGEST]


def test_there_are_files_of_each_kind():
    assert {path.suffix for path in FILES} >= KINDS - {".yaml"} | {""}
    assert len(FILES) > 300


@pytest.mark.parametrize("suffix", sorted({path.suffix for path in FILES}), ids=lambda suffix: suffix or "none")
def test_lines_are_short(suffix):
    long = {}
    for path in FILES:
        if path.suffix == suffix:
            lines = path.read_text(encoding="utf-8").splitlines()
            lines = [PRAGMA.sub("", line) for line in lines] if suffix in {".py", ".pyi"} else lines
            if found := too_long(lines):
                long[str(path.relative_to(ROOT))] = found
    assert not long


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_lines_of_notebooks_are_short(notebook):
    for cell in read(notebook)["cells"]:
        assert not too_long(line.rstrip("\n") for line in cell["source"]), cell["id"]
