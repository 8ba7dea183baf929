"""`workflow validate`: needs no server; all faults, their places, and exit codes."""

import io
import json

import pytest

from cli.main import main

GOOD = "name: build\nstages:\n  - name: test\n    jobs:\n      - name: unit\n        script: make test\n"
BAD = GOOD.replace("script:", "scirpt:")


@pytest.fixture
def file(tmp_path):
    def write(text, name="flow.yml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_a_good_file(file, capsys):
    assert main(["workflow", "validate", file(GOOD)]) == 0
    assert "ok (build)" in capsys.readouterr().out


def test_faults_have_a_place_a_caret_and_the_nearest_word(file, capsys):
    path = file(BAD)
    assert main(["workflow", "validate", file(GOOD, "good.yml"), path]) == 1
    out = capsys.readouterr().out
    assert f"{path}:6:9" in out
    assert "^" in out
    assert "script" in out
    assert "good.yml: ok" in out


def test_json_is_for_programs(file, capsys):
    assert main(["workflow", "validate", file(BAD), "-o", "json"]) == 1
    (result,) = json.loads(capsys.readouterr().out)
    assert result["valid"] is False
    assert 6 in [fault["line"] for fault in result["faults"]]


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"a: &a [*a]", b"[" * 10000, b"\x00", b"x: " + b"y" * (1 << 21)])
def test_hostile_files_are_refused_without_a_trace(file, capsys, text):
    assert main(["workflow", "validate", file(text)]) == 1
    assert "Traceback" not in "".join(capsys.readouterr())


def test_stdin_is_a_file_too(monkeypatch, capsys):
    class Stdin:
        buffer = io.BytesIO(GOOD.encode())

    monkeypatch.setattr("sys.stdin", Stdin())
    assert main(["workflow", "validate", "-"]) == 0
    assert "ok (build)" in capsys.readouterr().out
