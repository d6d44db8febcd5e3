"""Output streams that are closed, full or of another encoding: the command is completed, with its usual status."""

import os
import subprocess
import sys

import pytest

import resnet_paths_plugin as rpp

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full and a POSIX shell")]

COMMAND = f"{sys.executable} -W ignore -m resnet_paths_plugin"
ANALYZE = f"{COMMAND} analyze --analyzer BlockInfluence --path-images 2 --draws 1 --output out.nc"


def shell(command, folder, **environment):
    """Run a command of a shell; return its status, output and errors."""
    ended = subprocess.run(  # noqa: S603 - one's own command
        ["/bin/bash", "-c", command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        check=False,
    )
    return ended.returncode, ended.stdout.decode(errors="replace"), ended.stderr.decode(errors="replace")


def assert_complete(folder):
    assert "BlockInfluence" in str(rpp.load(folder / "out.nc").attrs)
    assert (folder / "out.html").read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert not list(folder.glob("*.partial")) + list(folder.glob(".*"))


LATER = ["2>&-", "2>/dev/full", "--progress 2>&-", ">&-"]


@pytest.mark.parametrize(
    "streams",
    [
        "--progress 2>/dev/full",
        "| head -c 1; exit ${PIPESTATUS[0]}",
        ">&- 2>&-",
        *(pytest.param(one, marks=pytest.mark.zoo) for one in LATER),
    ],
)
def test_an_analysis_is_complete_whatever_becomes_of_its_output(tmp_path, streams):
    status, _, errors = shell(f"{ANALYZE} {streams}", tmp_path)
    assert status == 0, errors
    assert "Exception ignored" not in errors
    assert_complete(tmp_path)


def test_a_full_standard_output_is_told_of_at_the_end(tmp_path):
    status, _, errors = shell(f"{ANALYZE} >/dev/full", tmp_path)
    assert status == 2
    assert errors.strip().splitlines()[-1] == (
        "Error: cannot print to standard output: No space left on device. Files are complete"
    )
    assert_complete(tmp_path)


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full"])
def test_an_error_keeps_its_status_without_standard_error(tmp_path, streams):
    assert shell(f"{COMMAND} report missing.nc {streams}", tmp_path)[0] == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_names_are_printed_in_a_locale_without_their_letters(tmp_path, encoding):
    (tmp_path / "mine.py").write_text(
        "import torch\nclass Net_\u4e2d(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__(); self.\u00e4 = torch.nn.Linear(5, 5)\n"
        "    def forward(self, x): return x + torch.tanh(self.\u00e4(x))\n"
        "make = Net_\u4e2d\n",
        encoding="utf-8",
    )
    of_old = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": f"{encoding}:strict"}
    status, output, errors = shell(f"{COMMAND} blocks mine:make --input-shape 5", tmp_path, **of_old)
    assert status == 0, errors
    assert "Net_\\u4e2d: 1 residual blocks" in output
    assert "bug" not in errors
