"""The example project is sound by itself: its own checks pass, its build runs, its workflow file has no fault."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from shared.workflow.parser import parse_workflow

COMPONENTS = Path(__file__).parents[3] / "components"
PYTHON = [sys.executable, "-B"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    copy = tmp_path / "waypoint"
    shutil.copytree(
        COMPONENTS / "examples/waypoint", copy, ignore=shutil.ignore_patterns("__pycache__", "dist", ".test-*")
    )
    return copy


def run(*command: str | Path) -> str:
    done = subprocess.run([*PYTHON, *map(str, command)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_workflow_file_has_no_fault() -> None:
    parsed = parse_workflow((COMPONENTS / "examples/waypoint/hubflow.yaml").read_text())
    assert parsed.warnings == ()
    assert [stage.type for stage in parsed.model.stages] == ["normal", "normal", "pause", "normal", "normal"]


def test_its_lint_finds_nothing_here_and_something_elsewhere(project: Path) -> None:
    assert "no faults" in run(project / "tools/lint.py")
    (project / "src/waypoint/bad.py").write_text("import os\ntry:\n    pass\nexcept:\n    breakpoint()\t\n")
    done = subprocess.run([*PYTHON, str(project / "tools/lint.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    for fault in ("os is imported", "a bare except", "a forgotten breakpoint", "a tab", "no docstring"):
        assert fault in done.stdout


def test_passed_tests_run_again_only_for_changed_code(project: Path, tmp_path: Path) -> None:
    cache = f"--cache={tmp_path / 'cache'}"
    assert "3 modules run, 0 unchanged, failed: none" in run(project / "tools/test.py", cache)
    assert "0 modules run, 3 unchanged, failed: none" in run(project / "tools/test.py", cache)
    store = project / "src/waypoint/store.py"
    store.write_text(store.read_text() + "\n# changed\n")
    assert "2 modules run, 1 unchanged, failed: none" in run(project / "tools/test.py", cache)


def test_a_broken_unit_test_fails_the_job(project: Path, tmp_path: Path) -> None:
    codes = project / "src/waypoint/codes.py"
    codes.write_text(codes.read_text().replace("2 * place + 1", "2 * place + 2"))
    done = subprocess.run(
        [*PYTHON, str(project / "tools/test.py"), f"--cache={tmp_path}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "test_every_single_wrong_letter_is_noticed" in done.stdout


def test_what_is_built_is_the_same_twice_and_runs(project: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    build = [project / "tools/build.py", "--version=1.4+1.gabc", "--commit=abc", f"--outputs={outputs}"]
    assert run(*build) == run(*build)
    digest = next(line for line in outputs.read_text().splitlines() if line.startswith("DIGEST="))[7:]
    smoke = [project / "tools/smoke.py", project / "dist", "--version=1.4+1.gabc", f"--digest={digest}"]
    assert "smoke: end: 0" in run(*smoke, f"--outputs={outputs}")
    assert "SERVED_VERSION=1.4+1.gabc" in outputs.read_text()


def test_a_tampered_artifact_is_not_deployed(project: Path) -> None:
    run(project / "tools/build.py", "--version=1")
    with (project / "dist/waypoint-1.pyz").open("ab") as program:
        program.write(b"x")
    wanted = "sha256:" + (project / "dist/SHA256SUMS").read_text().split()[0]
    done = subprocess.run(
        [*PYTHON, str(project / "tools/smoke.py"), str(project / "dist"), "--version=1", f"--digest={wanted}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "smoke: digest" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the toolbox is made of Linux programs")
def test_the_toolbox_has_python_git_a_shell_and_its_label(tmp_path: Path) -> None:
    archive = tmp_path / "toolbox.tar"
    build = COMPONENTS / "toolbox/build.py"
    told = json.loads(run(build, f"--output={archive}"))
    with tarfile.open(archive) as outer:
        manifest = json.load(outer.extractfile("manifest.json") or io.BytesIO())[0]
        config = json.load(outer.extractfile(manifest["Config"]) or io.BytesIO())
        with tarfile.open(fileobj=outer.extractfile(manifest["Layers"][0])) as layer:
            names = set(layer.getnames())
    assert {"usr/bin/git", "usr/bin/python3", "usr/bin/sh", "usr/local/bin/toolbox"} <= names
    assert not [name for name in names if name.startswith("/") or ".." in name.split("/")]
    labels = config["config"]["Labels"]
    assert {entry["name"] for entry in json.loads(labels["TencentHubComponent"])["input"]} >= {"CMD", "GIT_REF"}
    archive.unlink()
    again = json.loads(run(build, f"--output={archive}", f"--unless={told['digest']}"))
    assert not again["made"]
    assert not archive.exists(), "nothing is made twice"
