"""What the wheel and the sdist hold: all that is needed to run from anywhere, and nothing large."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="builds the distributions, extra 'test'")

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
LARGEST = 5_000_000
PACKAGES = {
    "resnet_paths_plugin": ROOT / "resnet_paths_plugin",
    "resnet_paths_timm": ROOT / "adapters" / "resnet_paths_timm",
    "resnet_paths_torchvision": ROOT / "adapters" / "resnet_paths_torchvision",
    "resnet_paths_transformers": ROOT / "adapters" / "resnet_paths_transformers",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with both distributions, built without an index."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)  # noqa: S603 - our own command
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return path, {info.filename: archive.read(info) for info in archive.infolist()}


@pytest.fixture(scope="module")
def sdist(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return path, {member.name.partition("/")[2]: member.size for member in archive.getmembers()}


def files_of(folder):
    """The files of a package: code, types, weights, templates and pages, but nothing that Python has made."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_the_wheel_holds_each_package_whole(package, wheel):
    _, files = wheel
    own = {name.removeprefix(f"{package}/") for name in files if name.startswith(f"{package}/")}
    assert own == files_of(PACKAGES[package])


def test_the_wheel_holds_weights_template_types_and_plugins_and_no_tests(wheel):
    path, files = wheel
    assert path.stat().st_size < LARGEST
    for name in ("digits_resnet110", "digits_plain15"):
        weights = f"resnet_paths_plugin/demo/{name}.safetensors"
        assert files[weights] == (ROOT / weights).read_bytes()
    assert "resnet_paths_plugin/report/report.html.jinja" in files
    assert {name for name in files if name.endswith("py.typed")} == {f"{package}/py.typed" for package in PACKAGES}
    assert {name.partition("/")[0] for name in files if ".dist-info" not in name} == set(PACKAGES)
    (points,) = (text.decode() for name, text in files.items() if name.endswith("entry_points.txt"))
    assert "resnet-paths = resnet_paths_plugin.cli:main" in points
    assert "timm = resnet_paths_timm" in points


def test_the_sdist_holds_what_a_clone_holds(sdist):
    path, sizes = sdist
    assert path.stat().st_size < LARGEST
    assert max(sizes.values()) < LARGEST
    wanted = {"pyproject.toml", "README.md", "LICENSE", ".docs/mkdocs.yml", ".github/CONTRIBUTING.md"}
    for folder in ("resnet_paths_plugin", "adapters", "examples/third_party_plugin/tidepool", "tests/zoo"):
        wanted |= {f"{folder}/{name}" for name in files_of(ROOT / folder)}
    assert {name for name in wanted if not name.endswith((".nc", ".html"))} <= sizes.keys()
    assert not [name for name in sizes if "__pycache__" in name or ".venv" in name.split("/")]
