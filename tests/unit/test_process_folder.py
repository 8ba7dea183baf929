"""The folders of the process runtime, where two processes look at the same container."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shared.runtime import process_folder as folders
from shared.runtime.process_folder import Layout
from shared.runtime.protocol import ContainerSpec


@pytest.mark.parametrize("moment", ["result.json", "running", "exit", "stop.json"])
@pytest.mark.parametrize("claimed", [True, False])
def test_what_is_removed_while_one_looks_is_gone_and_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, claimed: bool
) -> None:
    """Seen with two status watchers: one was killed by it."""
    layout = Layout(tmp_path)
    layout.create()
    uid = folders.new_uid()
    with folders.prepared(layout, ContainerSpec("one", "", {}, {}), {"command": ["true"]}, uid) as container:
        assert container is not None
    if claimed:
        Path(container.job).unlink()
    reading = folders._read_json

    def somebody_removes_it(path: str) -> dict[str, Any] | None:
        if path.endswith(moment) and Path(container.folder).exists():
            folders.discard(layout, folders.detach(container))
        return reading(path)

    monkeypatch.setattr(folders, "_read_json", somebody_removes_it)
    seen = folders.observe(layout, "one")
    assert seen is None or Path(container.folder).exists()


def test_t17_a_result_of_brackets_without_end_is_none(tmp_path: Path) -> None:
    """A job may write it; Python's reader gives up on it in a way of its own."""
    layout = Layout(tmp_path)
    layout.create()
    uid = folders.new_uid()
    with folders.prepared(layout, ContainerSpec("one", "", {}, {}), {"command": ["true"]}, uid) as container:
        assert container is not None
        Path(container.event("result.json")).write_text("[" * 300_000)
        seen = folders.observe(layout, "one")
    assert seen is not None
    assert seen.result is None


def test_markers_of_what_was_removed_by_hand_are_swept_and_those_of_others_stay(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.create()
    for name in ("kept", "removed"):
        uid = folders.new_uid()
        with folders.prepared(layout, ContainerSpec(name, "", {}, {}), {"command": ["true"]}, uid) as container:
            assert container is not None
        for kind in ("running", "result.json"):
            Path(layout.event(name, uid, kind)).write_text("{}")
    shutil.rmtree(layout.containers / "removed")
    folders.sweep(layout, older_than=60.0)
    assert len(list(layout.events.iterdir())) == 4, "young ones are left alone"
    folders.sweep(layout, older_than=-1.0)
    assert {path.name.partition(".")[0] for path in layout.events.iterdir()} == {"kept"}


def test_containers_are_spread_over_the_disk(tmp_path: Path) -> None:
    """On ext4 without a journal a file takes 0.4 ms to make in a block group where many were deleted lately."""
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True, check=True
    ).stdout.strip()
    if kind != "ext2/ext3" or shutil.which("lsattr") is None:
        pytest.skip(f"needs ext4 and lsattr; this is {kind}")
    layout = Layout(tmp_path / "root")
    layout.create()
    shown = subprocess.run(["lsattr", "-d", layout.removed], capture_output=True, text=True, check=True).stdout
    assert "T" in shown.split()[0], "where containers are prepared is no top of a folder tree"
