"""The README's Python runs as it stands, one block after the other."""

import re
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def test_the_readme_runs(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.syspath_prepend(ROOT / "examples" / "third_party_plugin")  # which a reader installs
    exec(compile("\n".join(blocks), str(README), "exec"), {})  # noqa: S102 - our own README
    plt.close("all")
    assert len(blocks) == 7
    printed = capsys.readouterr().out
    assert "8 residual blocks" in printed
    assert "5 layers that can be deleted" in printed
    assert printed.endswith("mid.2\n")
    assert {path.name for path in tmp_path.iterdir()} == {"lengths.nc", "lesions.nc"}
