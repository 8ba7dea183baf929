"""References, conditions, triggers, inputs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import PermanentError, UserError
from shared.states import Reason
from shared.workflow.conditions import (
    FIELDS,
    FUNCTIONS,
    METHODS,
    ConditionError,
    check_condition,
    evaluate_condition,
    mentioned_fields,
    mentioned_jobs,
    runs_after_failure,
    typed_inputs,
)
from shared.workflow.expressions import references, render, render_globals
from shared.workflow.inputs import resolve_inputs
from shared.workflow.model import Workflow, builtin_of
from shared.workflow.parser import parse_workflow
from shared.workflow.plan import plan
from shared.workflow.triggers import matches, matches_push

CONTEXT = {
    "jobs": {"build": {"state": "succeeded", "outputs": {"TAG": "v1", "EMPTY": ""}}, "unit tests": {"state": "failed"}},
    "env": {"A": "a"},
    "inputs": {"DRY": True},
    "run": {"number": 7, "id": "r1"},
}


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("x-${{ jobs.build.outputs.TAG }}-${{run.number}}", "x-v1-7"),
        ("${{ jobs['unit tests'].state }}", "failed"),
        ('${{ jobs . build . outputs ["TAG"] }}', "v1"),
        ("${{ jobs.build.outputs.EMPTY }}", ""),
        ("${{ inputs.DRY }}", "true"),
        ("$${{ not.ours }}", "${{ not.ours }}"),
        ("${A} ${B} $A $${A}", "1 ${B} $A $1"),
        ("no references { } $", "no references { } $"),
    ],
)
def test_rendering(text: str, rendered: str) -> None:
    assert render(text, CONTEXT, {"A": "1"}) == rendered


def test_what_was_put_in_is_not_looked_at_again() -> None:
    context = {"env": {"A": "${{ env.B }} ${B}", "B": "secret"}}
    assert render("${{ env.A }} ${A}", context, {"A": "${{ env.B }}", "B": "x"}) == "${{ env.B }} ${B} ${{ env.B }}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("${{ jobs.build.outputs.NOPE }}", "the job build printed no output NOPE (it printed: EMPTY or TAG)"),
        ("${{ jobs.nope.outputs.X }}", "there is no nope"),
        ("${{ secrets.KEY }}", "the tenant has no secret KEY"),
        ("${{ git.branch }}", "this run was started without it"),
        ("${{ jobs.build.outputs }}", "does not name a value"),
        ("${{ }}", "does not name a value"),
    ],
)
def test_what_is_missing_is_a_bad_input(text: str, told: str) -> None:
    with pytest.raises(PermanentError) as caught:
        render(text, CONTEXT)
    assert caught.value.reason == Reason.BAD_INPUT
    assert told in str(caught.value)


@given(st.text())
def test_rendering_a_text_without_references_changes_nothing(text: str) -> None:
    if "${" not in text:
        assert render(text, {}, {"A": "x"}) == text


@given(st.text(alphabet="${}[]'\". ab\n\\"))
def test_references_are_read_from_any_text(text: str) -> None:
    for reference in references(text):
        assert text[reference.offset :].startswith(reference.text)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("run.failed", False),
        ("git.branch == 'main' && !run.failed", True),
        ("git.branch.startsWith('release/')", False),
        ("jobs.build.state == 'succeeded' && jobs.build.outputs.TAG != ''", True),
        ("jobs['unit tests'].state == 'failed'", True),
        ("has(jobs.build.outputs.NOPE)", False),
        ("['a', 'main'].exists(name, name == git.branch)", True),
        ("inputs.COUNT > 2", True),
    ],
)
def test_conditions(expression: str, value: bool) -> None:
    check_condition(expression)
    context = CONTEXT | {"git": {"branch": "main"}, "inputs": {"COUNT": 3.0}}
    assert evaluate_condition(expression, context) is value


@pytest.mark.parametrize(
    ("expression", "told", "offset"),
    [
        ("a &&", "the condition ends too early", 4),
        ("git.branch =\n= 'x'", "`=` has no meaning", None),
        ("git.branch == \N{LEFT DOUBLE QUOTATION MARK}x", "has no meaning in a condition", 14),
        ("'open", "a text in this condition is not closed", 0),
        ("branch == 'x'", "there is no variable `branch`", 0),
        ("jobs.build-it.state == 'x'", "jobs['a-b']", 11),
        ("[1].map(x, [2].map(y, y))", "a condition may have one of", 14),
        ("(" * 200 + "1" + ")" * 200, "too many brackets", None),
        ("1 == " + "1" * 2000, "may have 1000 characters", None),
        ("1 +" * 300 + "1 == 301", "", None),
        ("  ", "cannot be empty", 0),
        ("git.branch", "true or false, and this is a text", 0),
        ("'x'", "true or false, and this is a text", 0),
        ("1", "true or false, and this is a number", 0),
        ("git.branch.contains", "", None),
        ("contains(git.branch, 'x')", "is called on a value, as in git.branch.contains(…)", 0),
        ("[1].existsOne(x, [2].exists(y, y == x))", "a condition may have one of", 20),
        ("jobs.a.state == 'success'", "no job is ever `success`", 16),
        ("run.failed && 'sucess' != jobs['a b'].state", "no job is ever `sucess`", 14),
        ("jobs.a.state in ['failed', 'failure']", "no job is ever `failure`", 27),
    ],
)
def test_bad_conditions_are_told_with_their_place(expression: str, told: str, offset: int | None) -> None:
    if not told:
        check_condition(expression)
        return
    with pytest.raises(ConditionError) as caught:
        check_condition(expression)
    assert caught.value.reason == Reason.CONDITION_ERROR
    if offset is not None:
        assert told in str(caught.value)
        assert caught.value.offset == offset


@pytest.mark.parametrize(
    ("expression", "told", "offset", "suggestion"),
    [
        ("git.branch = 'x'", "`=` has no meaning", 11, "=="),
        ("git.branch === 'x'", "`=` has no meaning", 13, "=="),
        ("run.failed & true", "`&` has no meaning", 11, "&&"),
        ("run.failed | true", "`|` has no meaning", 11, "||"),
        ("run.failed and true", "`and` cannot stand here", 11, "&&"),
        ("run.failed or true", "`or` cannot stand here", 11, "||"),
        ("not run.failed", "`not` cannot stand here", 4, "!"),
        ("not(run.failed)", "no function `not`", 0, "!"),
        ("always()", "no function `always`", 0, "run.failed || true"),
        ("true && failure()", "no function `failure`", 8, "run.failed"),
        ("success()", "no function `success`", 0, "!run.failed"),
        ("git.branch.startswith('x')", "no function `startswith`", 11, "startsWith"),
        ("jobs.a.state == 'succeded'", "no job is ever", 16, "succeeded"),
    ],
)
def test_what_people_know_from_elsewhere_is_told_as_it_is_written_here(
    expression: str, told: str, offset: int, suggestion: str
) -> None:
    with pytest.raises(ConditionError) as caught:
        check_condition(expression)
    assert told in str(caught.value)
    assert (caught.value.offset, caught.value.suggestion) == (offset, suggestion)


@pytest.mark.parametrize("name", [f"{root}.{name}" for root, names in FIELDS.items() for name in names])
def test_every_field_of_a_condition_has_a_value(name: str) -> None:
    check_condition(f"{name} == {name}")
    assert evaluate_condition(f"{name} == {name}", {})


TIME = "timestamp('2026-01-02T03:04:05Z')"
CALLS = {
    "has": "has(git.branch)", "size": "size('a') == 1", "string": "string(1) == '1'", "int": "int('1') == 1",
    "uint": "uint('1') == 1u", "double": "double('1') == 1.0", "bytes": "bytes('a') == b'a'", "dyn": "dyn(1) == 1",
    "type": "type(1) == type(2)", "timestamp": f"{TIME} == {TIME}", "duration": "duration('1h') > duration('1m')",
    "contains": "'ab'.contains('b')", "startsWith": "'ab'.startsWith('a')", "endsWith": "'ab'.endsWith('b')",
    "matches": "'ab'.matches('a.')",
}  # fmt: skip


@pytest.mark.parametrize("name", [*FUNCTIONS, *METHODS])
def test_every_function_of_a_condition_can_be_called(name: str) -> None:
    expression = CALLS.get(name, f"{TIME}.{name}() >= 0")
    check_condition(expression)
    assert evaluate_condition(expression, {})


@pytest.mark.parametrize("expression", ["jobs.nope.state == 'x'", "git.branch", "1 / 0 == 1", "1 < 'a'", "nofunc(1)"])
def test_conditions_that_cannot_be_evaluated(expression: str) -> None:
    with pytest.raises(ConditionError):
        evaluate_condition(expression, {"git": {"branch": "x"}})


@given(st.text(alphabet="abrun.failed jobsgit[]()'\"&|!=<>+-*/%?:,{}0123456789\\\né\x00", max_size=80))
def test_any_text_as_a_condition_gives_a_value_or_a_condition_error(text: str) -> None:
    try:
        check_condition(text)
        evaluate_condition(text, {"git": {"branch": "x"}})
    except ConditionError as error:
        assert error.offset is None or 0 <= error.offset <= len(text)  # noqa: PT017


def test_runs_after_failure() -> None:
    assert runs_after_failure("run.failed")
    assert runs_after_failure("git.branch == 'x' || !(run . failed)")
    assert runs_after_failure("run['failed']")
    assert not runs_after_failure("git.branch == 'run.failed'")
    assert not runs_after_failure("xrun.failed")
    assert not runs_after_failure(None)


def test_mentioned_jobs() -> None:
    found = mentioned_jobs("jobs.a.outputs.X == 'jobs.b' && jobs['c d'].outputs.Y == '' || x.jobs.e")
    assert [(mention.job, mention.output) for mention in found] == [("a", "X"), ("c d", "Y")]
    found = mentioned_jobs("jobs.a.state == jobs.b.result.x")
    assert [(mention.field, mention.output) for mention in found] == [("state", ""), ("result", "")]


def test_mentioned_fields() -> None:
    found = mentioned_fields("git.branch.startsWith('run.x') && run['failed'] || a.env.X && env.size() > 1")
    assert [(mention.root, mention.name, mention.offset) for mention in found] == [
        ("git", "branch", 0),
        ("run", "failed", 34),
    ]


def test_global_variables_where_there_is_no_job() -> None:
    written = {"A": "x-${B}", "B": {"value": "b"}, "C": "${{ secrets.S }}", "D": "${{ git.branch }}", "E": "${C}${D}"}
    assert render_globals(written, {"git": {"branch": "main"}}) == {"A": "x-b", "B": "b", "D": "main", "E": "${C}main"}


def test_a_missing_value_may_stay_as_it_is_written() -> None:
    text = "${{ env.A }} ${{ env.NOPE }} $${{ x }}"
    assert render(text, CONTEXT, keep_missing=True) == "a ${{ env.NOPE }} ${{ x }}"


def workflow(head: str) -> Workflow:
    return parse_workflow(f"name: x\n{head}\nstages: [{{name: s, jobs: {{a: {{script: x}}}}}}]").model


@pytest.mark.parametrize(
    ("patterns", "text", "expected"),
    [
        (["main"], "main", True),
        (["main"], "mainx", False),
        (["release/*"], "release/1", True),
        (["release/*"], "release/1/2", False),
        (["release/**"], "release/1/2", True),
        (["**/*.py"], "a.py", True),
        (["**/*.py"], "a/b/c.py", True),
        (["src/**", "!src/docs/**"], "src/docs/a", False),
        (["src/**", "!src/docs/**", "src/docs/keep"], "src/docs/keep", True),
        (["!docs/**"], "src/a", True),
        (["!docs/**"], "docs/a", False),
        (["v[0-9].?"], "v1.2", True),
        (["v[!0-9]"], "v1", False),
        (["a.c"], "abc", False),
        (["[z-a]"], "q", True),
        ([], "a", False),
    ],
)
def test_patterns(patterns: list[str], text: str, expected: bool) -> None:
    assert matches(patterns, text) is expected


@given(st.lists(st.text(alphabet="*?![]a-z/.^&~|\\", max_size=12), max_size=4), st.text(max_size=12))
def test_any_pattern_can_be_asked(patterns: list[str], text: str) -> None:
    assert matches(patterns, text) in (True, False)


def test_pushes() -> None:
    every = workflow("on: push")
    assert matches_push(every, branch="a")
    assert matches_push(every, tag="v1")
    assert matches_push(workflow("on: {push: }"), branch="a")
    assert not matches_push(workflow(""), branch="a")
    assert not matches_push(workflow("on: api"), branch="a")
    some = workflow("on: {push: {branches: [main, 'r/*'], paths: ['src/**', '!**/*.md']}}")
    assert matches_push(some, branch="main", changed_paths=["README.md", "src/a.py"])
    assert not matches_push(some, branch="main", changed_paths=["src/a.md"])
    assert matches_push(some, branch="main", changed_paths=None)
    assert not matches_push(some, branch="other", changed_paths=["src/a.py"])
    assert not matches_push(some, tag="main")
    tags = workflow("on: {push: {tags: 'v*'}}")
    assert (matches_push(tags, tag="v1"), matches_push(tags, branch="v1")) == (True, False)
    assert Workflow.from_json(every.to_json()) == every
    assert Workflow.from_json(workflow("on: api").to_json()) == workflow("on: api")


INPUTS = """
inputs:
  TEXT: a
  COUNT: {type: number, required: true}
  DRY: {type: boolean, default: false}
  KIND: {type: choice, choices: [x, yy], default: x}
  KEY: {secret: true, type: number}
"""


def test_inputs_of_a_start() -> None:
    model = workflow(INPUTS)
    values = resolve_inputs(model, {"COUNT": 3, "DRY": True, "KEY": 42})
    assert values == {"TEXT": "a", "COUNT": "3", "DRY": "true", "KIND": "x", "KEY": "42"}
    assert typed_inputs(plan(model).input_types, values) == {
        "TEXT": "a",
        "COUNT": 3.0,
        "DRY": True,
        "KIND": "x",
        "KEY": 42.0,
    }


def test_all_bad_inputs_come_at_once_and_secrets_are_not_told() -> None:
    with pytest.raises(UserError) as caught:
        resolve_inputs(workflow(INPUTS), {"TEXTT": 1, "KIND": "y", "DRY": [1], "KEY": "hunter2"})
    assert caught.value.details["inputs"] == {
        "TEXTT": "the workflow has no such input (did you mean TEXT?)",
        "COUNT": "this input is required",
        "KIND": "`y` is none of the choices (expected x or yy)",
        "DRY": "a text is needed here, but this is a list (expected a text or a number)",
        "KEY": "not a possible value",
    }
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("component", "builtin"),
    [
        ("workflow_pause", "workflow_pause"),
        ("hub.tencentyun.com/tencenthub/workflow_pause:latest", "workflow_pause"),
        ("hub.example.com:5000/tencenthub/async_run_flow@sha256:00", "run_flow"),
        ("tencenthub/run_flow", "run_flow"),
        ("hub.example.com/mine/run_flow", ""),
        ("alpine:3", ""),
        ("", ""),
    ],
)
def test_builtin_components(component: str, builtin: str) -> None:
    assert builtin_of(component) == builtin
