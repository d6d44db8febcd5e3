"""What importing costs: the help needs no torch, nor do figures, reports, files and path counts."""

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "captum",
    "timm",
    "torchvision",
    "transformers",
    "matplotlib",
    "scipy.stats",
    "xarray",
    "netCDF4",
    "h5py",
)


def imported_by(code):
    """Return which heavy libraries a fresh interpreter has imported after some code."""
    told = f"import sys\n{code}\nprint('imported:', *(name for name in {HEAVY} if name in sys.modules))"
    command = [sys.executable, "-c", told]
    found = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - written here
    return set(found.stdout.splitlines()[-1].split()[1:])


def command(*args):
    return (
        "from resnet_paths_plugin.cli import main\n"
        f"try: main({list(args)})\n"
        "except SystemExit as left: assert not left.code, left"
    )


@pytest.mark.parametrize("args", [("--help",), ("--version",), ()], ids=["--help", "--version", "no command"])
def test_help_imports_nothing_heavy(args):
    code = command(*args).replace("assert not left.code, left", "pass") if not args else command(*args)
    assert imported_by(code) == set()


@pytest.mark.parametrize(
    "module",
    ["plotting.registry", "report", "results.datasets", "paths", "results.schema", "comparison.comparison"],
)
def test_what_reads_and_draws_results_imports_no_torch(module):
    assert imported_by(f"import resnet_paths_plugin.{module}").isdisjoint({"torch", "captum", "timm", "torchvision"})


def test_the_package_imports_what_is_asked_for():
    assert imported_by("import resnet_paths_plugin") == set()
    analyzers = "from resnet_paths_plugin import unravel, BlockLesion, PathLengthGradient"
    assert imported_by(analyzers).isdisjoint({"timm", "torchvision", "scipy.stats", "netCDF4", "h5py"})


@pytest.mark.parametrize("first", ["import xarray as xr", "import resnet_paths_plugin as rpp\nimport xarray as xr"])
def test_datasets_have_their_figures_however_both_are_imported(first):
    code = f"{first}\nimport resnet_paths_plugin as rpp\nrpp.load\nprint(xr.Dataset().resnet_paths.kind)"
    assert "torch" not in imported_by(code)


@pytest.mark.parametrize("first", ["import resnet_paths_plugin as rpp", "import xarray as xr"])
def test_importing_the_accessor_is_enough(first):
    code = f"{first}\nimport resnet_paths_plugin.plotting.accessor\nimport xarray\nxarray.Dataset().resnet_paths"
    assert "torch" not in imported_by(code)


def test_every_public_name_is_there():
    import resnet_paths_plugin as rpp
    from resnet_paths_plugin import plotting

    for module in (rpp, plotting):
        for name in module.__all__:
            assert getattr(module, name) is not None
            assert name in dir(module)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = rpp.no_such_name
