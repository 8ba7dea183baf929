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


def test_a_file_that_cannot_be_read_does_not_hide_the_others(file, tmp_path, capsys):
    missing = str(tmp_path / "missing.yml")
    files = [file(GOOD, "good.yml"), missing, file(BAD, "bad.yml")]
    assert main(["workflow", "validate", *files]) == 2
    out, err = capsys.readouterr()
    assert "good.yml: ok" in out
    assert "bad.yml: 1 fault" in out
    assert f"Error: cannot read {missing}" in err
    assert main(["workflow", "validate", *files, "-o", "json"]) == 2
    results = json.loads(capsys.readouterr().out)
    assert [each["valid"] for each in results] == [True, False, False]
    assert "cannot read" in results[1]["faults"][0]["message"]


def test_of_a_big_file_no_smaller_size_is_told(file, capsys):
    assert main(["workflow", "validate", file(b"a" * 5_000_000)]) == 1
    assert "the file has more than 2 MiB" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["validate", "apply", "diff"])
def test_a_file_that_is_not_utf_8_is_told_by_line_and_column(file, capsys, verb):
    path = file(b"name: x\ndescription: caf\xe9\n")
    assert main(["workflow", verb, path]) == 1
    assert f"{path}:2:17: the byte 0xE9 is not text in UTF-8" in "".join(capsys.readouterr())


def test_stdin_is_a_file_too(monkeypatch, capsys):
    class Stdin:
        buffer = io.BytesIO(GOOD.encode())

    monkeypatch.setattr("sys.stdin", Stdin())
    assert main(["workflow", "validate", "-"]) == 0
    assert "ok (build)" in capsys.readouterr().out
