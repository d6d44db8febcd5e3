"""`resnet-paths survey`: the same studies on many models, which go on where they were stopped, and a comparison."""

import json
import os
import re
import subprocess
import sys
import time

import command_lines
import numpy as np
import pytest
import timm
from command_lines import OPTIONS, SOURCE, STATISTICS, invoke, told
from small_studies import timeless

import resnet_paths_plugin as rpp
from resnet_paths_plugin.cli import survey as command
from resnet_paths_plugin.cli.survey_folder import SurveyFolder

pytestmark = pytest.mark.filterwarnings("ignore:.* has random weights, others")

place = command_lines.place  # a fixture
LESIONS = ("--studies", "single_lesions", "--images", "images.npz", *STATISTICS)
TINY, FROZEN, PLAIN = (f"tiny_residual_network:{name}" for name in ("build", "frozen", "plain"))


def surveyed(*arguments, code=0):
    result = invoke("survey", *arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def results_of(folder):
    """Every file of results in a folder, by its name, without the times at which it was made."""
    found = {}
    for path in sorted(folder.glob("*.nc")):
        tree = rpp.load(path)
        found[path.name] = {group: timeless(node.to_dataset()) for group, node in tree.subtree_with_keys}
    return found


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, groups in found.items():
        assert list(groups) == list(expected[name])
        for group, dataset in groups.items():
            assert dataset.identical(expected[name][group]), (name, group)


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.fixture
def counted(monkeypatch):
    """The models that were loaded."""
    loaded = []
    load = command.models.load

    def counting(spec, *others):
        loaded.append(spec)
        return load(spec, *others)

    monkeypatch.setattr(command.models, "load", counting)
    return loaded


def test_each_model_has_a_file_and_all_are_compared(tmp_path, place):
    told_ = surveyed(TINY, FROZEN, *LESIONS, *OPTIONS, "--output", tmp_path / "both")
    names = sorted(path.name for path in (tmp_path / "both").iterdir())
    assert names == [
        "comparison-single-lesions.png", "comparison.html", "comparison.nc", "survey.json",
        "tiny_residual_network-build.nc", "tiny_residual_network-frozen.nc",
    ]  # fmt: skip
    assert "[1/2] tiny_residual_network:build\n" in told_
    assert "[2/2] tiny_residual_network:frozen\n" in told_
    own = rpp.load(tmp_path / "both" / "tiny_residual_network-build.nc")
    assert list(own.children) == ["single_lesions"]
    alone = invoke("analyze", TINY, *LESIONS, *OPTIONS, "--output", tmp_path / "alone.nc")
    assert alone.exit_code == 0, alone.output
    expected = timeless(rpp.load(tmp_path / "alone.nc")["single_lesions"].to_dataset())
    assert timeless(own["single_lesions"].to_dataset()).identical(expected)
    both = rpp.load(tmp_path / "both" / "comparison.nc")
    assert both["models"].model.values.tolist() == [TINY, FROZEN]
    found = both["single_lesions"].error.sel(model=TINY)
    np.testing.assert_allclose(found, expected.error)


def test_what_is_finished_is_not_run_again(tmp_path, counted):
    first = surveyed(TINY, *LESIONS, "--output", tmp_path / "survey")
    assert "there is nothing to compare: 1 of the models is done" in first
    again = surveyed(TINY, FROZEN, *LESIONS, "--output", tmp_path / "survey")
    assert counted == [TINY, FROZEN]
    assert f"[1/2] {TINY}: finished before\n" in again
    assert (tmp_path / "survey" / "comparison.nc").exists()
    surveyed(FROZEN, TINY, *LESIONS, "--output", tmp_path / "survey")
    assert counted == [TINY, FROZEN]


def test_other_settings_are_refused_by_their_names(tmp_path):
    surveyed(TINY, *LESIONS, "--output", tmp_path / "survey")
    before = (tmp_path / "survey" / "survey.json").read_bytes()
    line = told("survey", TINY, *LESIONS, "--seed", 1, "--limit", 10, "--output", tmp_path / "survey")
    assert "was made with other settings: " in line
    for difference in ("limit was not given and is 10", "seed was 0 and is 1", "images was 12 with"):
        assert difference in line
    assert line.endswith("Give the same to go on with it, name another --output, or remove the folder to start over")
    assert (tmp_path / "survey" / "survey.json").read_bytes() == before


def test_other_images_are_other_settings(tmp_path, place):
    surveyed(TINY, *LESIONS, "--output", tmp_path / "survey")
    with np.load("images.npz") as arrays:
        images, labels = arrays["images"].copy(), arrays["labels"]
    images[3, 2, 1, 0] += 1
    np.savez(tmp_path / "other.npz", images=images, labels=labels)
    line = told("survey", TINY, *LESIONS, "--images", tmp_path / "other.npz", "--output", tmp_path / "survey")
    assert "was made with other settings: images was 12 with fingerprint" in line


def test_a_model_that_fails_is_reported_and_the_others_are_done(tmp_path):
    output = surveyed(TINY, PLAIN, "no_such:model", FROZEN, *LESIONS, "--output", tmp_path / "s", code=2)
    assert f"Error: {PLAIN} failed and is left out: Sequential has no residual blocks" in output
    assert "Error: no_such:model failed and is left out: there is no module 'no_such'" in output
    last = output.splitlines()[-1]
    assert last.startswith(f"Error: 2 of 4 models failed and are left out: {PLAIN}, no_such:model. The same command")
    assert rpp.load(tmp_path / "s" / "comparison.nc")["models"].model.values.tolist() == [TINY, FROZEN]
    assert not list((tmp_path / "s").glob("*.partial"))


def test_an_error_of_any_kind_stops_no_other_model(tmp_path, monkeypatch):
    load = command.models.load

    def failing(spec, *others):
        if spec == TINY:
            raise ZeroDivisionError("out of luck")
        return load(spec, *others)

    monkeypatch.setattr(command.models, "load", failing)
    output = surveyed(TINY, FROZEN, *LESIONS, "--output", tmp_path / "s", code=2)
    assert f"Error: {TINY} failed and is left out: ZeroDivisionError: out of luck" in output
    assert (tmp_path / "s" / "tiny_residual_network-frozen.nc").exists()


def test_a_file_that_is_damaged_is_made_again(tmp_path, counted):
    surveyed(TINY, *LESIONS, "--output", tmp_path / "s")
    file = tmp_path / "s" / "tiny_residual_network-build.nc"
    expected = results_of(tmp_path / "s")
    file.write_bytes(file.read_bytes()[:500])
    surveyed(TINY, *LESIONS, "--output", tmp_path / "s")
    assert counted == [TINY, TINY]
    assert_same(results_of(tmp_path / "s"), expected)
    file.unlink()
    surveyed(TINY, *LESIONS, "--output", tmp_path / "s")
    assert counted == [TINY, TINY, TINY]


def test_a_model_whose_code_has_changed_is_studied_again(tmp_path, monkeypatch, place):
    folder = tmp_path / "code"
    folder.mkdir()
    monkeypatch.chdir(folder)
    arguments = ("edited_network:build", *LESIONS, "--images", place / "images.npz", "--output", tmp_path / "s")
    for width in (4, 4, 6):
        source = SOURCE.replace("\n    ", "\n").replace("4", str(width)).replace(f"1{width}{width}", "144")
        (folder / "edited_network.py").write_text(source)
        sys.modules.pop("edited_network", None)
        output = surveyed(*arguments)
        assert ("finished before" in output) == (width == 4 and (tmp_path / "seen").exists())
        (tmp_path / "seen").touch()
    sys.modules.pop("edited_network")


def test_an_interrupted_survey_goes_on_by_the_same_command(tmp_path, monkeypatch, counted):
    expected = tmp_path / "expected"
    surveyed(TINY, FROZEN, *LESIONS, *OPTIONS, "--output", expected)
    finish = SurveyFolder.finish

    def interrupting(folder, spec):
        (interrupt if spec == FROZEN else finish)(folder, spec)

    with monkeypatch.context() as patch:
        patch.setattr(SurveyFolder, "finish", interrupting)
        output = surveyed(TINY, FROZEN, *LESIONS, *OPTIONS, "--output", tmp_path / "s", code=130)
    kept = tmp_path / "s" / "tiny_residual_network-frozen.nc.partial"
    assert f"finished tasks are kept in {kept}: the same command goes on from them" in output
    del counted[:]
    output = surveyed(TINY, FROZEN, *LESIONS, *OPTIONS, "--output", tmp_path / "s")
    assert counted == [FROZEN]
    assert f"[2/2] {FROZEN}: goes on\n" in output
    assert not kept.exists()
    assert_same(results_of(tmp_path / "s"), results_of(expected))


def test_what_a_kill_after_the_last_task_leaves_is_removed(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(command.PartialRun, "remove", interrupt)
        surveyed(TINY, *LESIONS, "--output", tmp_path / "s", code=130)
    left = tmp_path / "s" / "tiny_residual_network-build.nc.partial"
    assert [*left.glob("*/*.task")]
    assert "finished before" in surveyed(TINY, *LESIONS, "--output", tmp_path / "s")
    assert not left.exists()


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("all of it")
    line = told("survey", TINY, *LESIONS, "--output", tmp_path)
    assert f"{tmp_path} is no folder of a survey: it holds thesis.tex" in line
    line = told("survey", TINY, *LESIONS, "--output", tmp_path / "thesis.tex")
    assert "thesis.tex is a file: give --output the name of a folder" in line
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ["{", "[]", '{"settings": {}, "models": []}', '{"settings": 3, "models": {}}'])
def test_a_damaged_manifest_is_refused(tmp_path, content):
    (tmp_path / "survey.json").write_text(content)
    assert "survey.json is damaged, or of another making" in told("survey", TINY, *LESIONS, "--output", tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="needs locks")
def test_two_surveys_do_not_share_a_folder(tmp_path):
    with SurveyFolder(tmp_path / "s", {}).held():
        line = told("survey", TINY, *LESIONS, "--output", tmp_path / "s")
    assert f"another process is at work on the survey {tmp_path / 's'}" in line


def test_an_output_does_not_hold_what_is_read(tmp_path, place):
    line = told("survey", TINY, *LESIONS, "--output", place)
    assert "(--images) lies inside" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TINY,), "a survey needs --images"),
        (LESIONS, "there is nothing to study: name models, or give --models 'library/pattern*'"),
        (("--models", "timm/resnett*", *LESIONS), "no model matches 'timm/resnett*': a pattern is library/name"),
        ((TINY, *LESIONS, "--studies", "single_lesion"), "there is no study 'single_lesion': did you mean"),
        ((TINY, *LESIONS, "--scheduler", "tcp://a:1", "--workers", 2), "give --scheduler (workers of a cluster) or"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(tmp_path, arguments, message):
    assert message in told("survey", *arguments, "--output", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_models_are_those_that_are_named_and_those_of_patterns_each_once():
    known = {"zoo/*": ("zoo/a", "zoo/b"), "ark/*": ("ark/c",)}
    found = command._chosen(("zoo/b", "my:net"), ("ark/*", "zoo/*"), known.__getitem__)
    assert found == ["zoo/b", "my:net", "ark/c", "zoo/a"]


def test_every_model_has_a_file_of_its_own(tmp_path):
    specs = [
        "a/b-c",
        "a-b/c",
        "a/b/c",
        "A/b",
        "a/b",
        "a:b",
        "a/é",
        f"a/{'x' * 300}",
        f"a/{'x' * 301}",
        "a/b.c",
        "hf/x:y",
    ]
    names = [SurveyFolder(tmp_path, {}).output(spec).name for spec in specs]
    assert len({name.casefold() for name in names} - {"comparison.nc"}) == len(specs) - 1  # but for a/b and a:b
    assert all(len(name.encode()) < 150 for name in names)
    assert names[9] == "a-b.c.nc"


def test_studies_by_name_are_those_of_the_file(tmp_path, place):
    result = invoke("analyze", TINY, *LESIONS, *OPTIONS, "--studies", "path_lengths", "--output", tmp_path / "a.nc")
    assert result.exit_code == 0, result.output
    assert list(rpp.load(tmp_path / "a.nc").children) == ["single_lesions", "path_lengths"]
    pairs = invoke("analyze", TINY, "--images", "images.npz", *STATISTICS, "--studies", "interactions",
                   "--pair-images", 3, "--output", tmp_path / "b.nc")  # fmt: skip
    assert pairs.exit_code == 0, pairs.output
    assert list(rpp.load(tmp_path / "b.nc").children) == ["interactions"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    generator = np.random.default_rng(3)
    path = tmp_path_factory.mktemp("pictures") / "pictures.npz"
    np.savez(path, images=generator.integers(0, 256, (8, 40, 40, 3), dtype=np.uint8), labels=np.arange(8) * 90)
    return path


SMALL = [name for name in timm.list_models("test_*") if not re.match("test_(coatnet|maxvit|efficientnet)", name)]
"""Small models with residual blocks, two that take seconds to capture left out."""


def long_survey(pictures, output):
    """A survey of 12 small models of timm, on two workers."""
    small = (f"timm/{name}" for name in SMALL[:12])
    return [
        sys.executable, "-m", "resnet_paths_plugin", "survey", *small, "--images", pictures, "--image-size", 160,
        "--studies", "single_lesions", "--studies", "path_lengths", "--path-images", 2, "--path-draws", 2,
        "--batch-size", 4, "--workers", 2, "--threads", 1, "--output", output,
    ]  # fmt: skip


def completed(arguments):
    return subprocess.run([*map(str, arguments)], capture_output=True, text=True, check=False)  # noqa: S603 - as below


def finished_in(folder):
    manifest = folder / "survey.json"
    return len(json.loads(manifest.read_text())["models"]) if manifest.exists() else 0


def killed_when(arguments, folder, n_models, log):
    """Run a command until some models are done and a further one has begun; kill it then."""
    with log.open("ab") as out:
        process = subprocess.Popen([*map(str, arguments)], stdout=out, stderr=out)  # noqa: S603 - our own command
        deadline = time.monotonic() + 600
        while process.poll() is None and time.monotonic() < deadline:
            done = finished_in(folder)
            begun = {task.parents[1].name.removesuffix(".partial") for task in folder.glob("*.partial/*/*.task")}
            if done >= n_models and any(not (folder / name).exists() for name in begun):
                break
            time.sleep(0.02)
        process.kill()
        assert process.wait() == -9, log.read_text()
    return finished_in(folder)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_survey_that_is_killed_twice_ends_as_if_it_had_not_been(tmp_path, pictures):
    assert len(SMALL) >= 12
    log = tmp_path / "log.txt"
    undisturbed = completed(long_survey(pictures, tmp_path / "a"))
    assert undisturbed.returncode == 0, undisturbed.stderr
    killed = long_survey(pictures, tmp_path / "b")
    first = killed_when(killed, tmp_path / "b", 3, log)
    second = killed_when(killed, tmp_path / "b", 8, log)
    assert 3 <= first < second < 12
    last = completed(killed)
    assert last.returncode == 0, last.stderr
    assert last.stdout.count("finished before") == second
    assert last.stdout.count(": goes on") == 1
    expected = results_of(tmp_path / "a")
    assert len(expected) == 12 + 1
    assert_same(results_of(tmp_path / "b"), expected)
    for picture in (tmp_path / "a").glob("*.png"):
        assert (tmp_path / "b" / picture.name).read_bytes() == picture.read_bytes()
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == sorted(
        path.name for path in (tmp_path / "a").iterdir()
    )
    assert json.loads((tmp_path / "b" / "survey.json").read_text()) == json.loads(
        (tmp_path / "a" / "survey.json").read_text()
    )
