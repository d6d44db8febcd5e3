"""The Python of the README and of the guides runs as it stands, one block after the other; links lead somewhere."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parent.parent
README, GUIDE = ROOT / "README.md", ROOT / "resnet_paths_plugin" / "README.md"
PAGES = [page for page in ROOT.rglob("*.md") if not {".venv", "node_modules"} & {*page.relative_to(ROOT).parts}]


def run(page, at_least, monkeypatch, folder):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= at_least
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MPLBACKEND", "agg")
    exec(compile("\n".join(blocks), str(page), "exec"), {})  # noqa: S102 - our own pages
    plt.close("all")
    return {path.name for path in folder.iterdir()}


def test_the_readme_runs(tmp_path, monkeypatch, capsys):
    assert run(README, 2, monkeypatch, tmp_path) == {"lesions.nc", "lesions.png"}
    printed = capsys.readouterr().out
    intact, deleted = (float(number) for number in re.findall(r"([\d.]+)%", printed))
    assert 0 < intact < 5
    assert intact <= deleted < 10
    (most,) = re.findall(r"at most (\d+) of 54 blocks", printed)
    assert 1 < int(most) < 20


def test_the_readme_is_two_screens():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 160


def test_the_guide_runs(tmp_path, monkeypatch, capsys):
    assert run(GUIDE, 7, monkeypatch, tmp_path) == {"both.nc", "lengths.nc", "lesions.nc", "small.pt"}
    printed = capsys.readouterr().out
    assert "8 residual blocks" in printed
    assert "5 layers that can be deleted" in printed


def test_the_guide_to_plugins_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "examples" / "third_party_plugin")  # which a reader installs
    run(ROOT / "adapters" / "README.md", 1, monkeypatch, tmp_path)
    assert capsys.readouterr().out.endswith("mid.2\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_are_there(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith(("http://", "https://")):
            assert (page.parent / link).exists(), link
