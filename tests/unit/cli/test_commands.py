"""All commands: they can be imported, help has examples, wrong words are met with the nearest right one, no trace ever."""

import importlib
import re
import subprocess
import sys

import click
import pytest

from cli.failure import USAGE
from cli.main import COMMANDS, hubflow, main

HEAVY = ("rich", "aiohttp", "asyncpg", "pydantic", "yaml", "http.client", "cryptography", "uvloop", "structlog")


def commands(group=hubflow, path=("hubflow",)):
    """(words, command) of every command that is not a group."""
    context = click.Context(group, info_name=path[-1])
    for name in group.list_commands(context):
        if name == "demo" and path == ("hubflow",):
            continue  # its own tests stand with it
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


ALL = list(commands())


def test_help_imports_no_library_but_click():
    code = "import sys; from cli.main import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Commands:" in done.stdout
    assert not set(HEAVY) & set(done.stderr.split())


@pytest.mark.parametrize(("words", "command"), ALL, ids=[" ".join(words) for words, _ in ALL])
def test_each_command_says_what_it_does(words, command, capsys):
    assert main([*words[1:], "--help"]) == 0
    shown = capsys.readouterr().out
    assert command.help
    assert "Options:" in shown
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, f"{parameter.name} has no help"


def test_examples_in_help_name_commands_and_options_that_exist():
    known = {" ".join(words): command for words, command in ALL}
    checked = 0
    for words, command in ALL:
        for line in re.findall(r"(?<![\w:/])hubflow [^\n&|`)]*", command.epilog or ""):
            parts = line.split("   ")[0].split()
            name = next(" ".join(parts[:size]) for size in (4, 3, 2) if " ".join(parts[:size]) in known)
            options = {opt for parameter in known[name].params for opt in (*parameter.opts, *parameter.secondary_opts)}
            for part in parts:
                if part.startswith("-") and part != "-":
                    assert part.split("=")[0] in options, f"{' '.join(words)}: {line}"
            checked += 1
    assert checked > 30


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["rum"], "'run'"),
        (["run", "strat"], "'start'"),
        (["run", "start", "build", "--wiat"], "'--wait'"),
        (["workflow", "aply"], "'apply'"),
        (["--ulr", "x"], "'--url'"),
        (["serve", "schedular"], "'scheduler'"),
    ],
)
def test_a_wrong_word_is_met_with_the_nearest(arguments, near, capsys):
    assert main(arguments) == USAGE
    assert near in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "start"],
        ["run", "start", "build", "-i", "NOVALUE"],
        ["run", "start", "build", "-i", "A=1", "-i", "A=2"],
        ["run", "list", "--limit", "many"],
        ["run", "logs", "1", "--attempt", "2"],
        ["token", "create", "x", "--expires", "soon"],
        ["tenant", "create", "x", "--cpu", "much"],
        ["tenant", "create", "x", "--jobs", "-4"],
        ["workflow", "validate", "/does/not/exist.yml"],
        ["--url", "ftp://x", "run", "list"],
        ["--url", "http://[half", "run", "list"],
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_2(arguments, capsys, monkeypatch):
    monkeypatch.setenv("HUBFLOW_URL", "http://127.0.0.1:1")
    assert main(arguments) == USAGE
    told = capsys.readouterr().err
    assert "Error: " in told
    assert "Traceback" not in told


def test_a_reader_that_goes_away_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m cli.main --help | true", shell=True, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""


def test_the_table_and_the_modules_say_the_same():
    for name, (path, short) in COMMANDS.items():
        if name == "demo":
            continue
        command = hubflow.get_command(click.Context(hubflow), name)
        assert command is not None, path
        assert command.name == name
        assert short.endswith(".")


@pytest.mark.parametrize("module", ["cli.reference", "cli.settings_reference", "cli.reasons_reference"])
def test_a_document_is_what_the_code_says(module):
    made = importlib.import_module(module)
    assert made.PLACE.read_text("utf-8") == made.document(), (
        f"{made.PLACE.name} is out of date: run `python -m {module}`"
    )


def test_which_stage_is_meant_can_be_copied_into_a_shell():
    from cli.run import _undecidable

    failure = _undecidable({"number": 3, "state": "paused"}, ["go live", "later"], "approve")
    assert failure.hint == "name the stage: hubflow run approve 3 'go live'"
