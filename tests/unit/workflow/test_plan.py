"""The scheduler's plan, the schema, and the promise of the parser for any text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.workflow import schema
from shared.workflow.faults import WorkflowError
from shared.workflow.model import Workflow
from shared.workflow.parser import ParsedWorkflow, parse_workflow
from shared.workflow.plan import Plan, RetryPlan, plan

EXAMPLES = Path(__file__).parents[3] / "components" / "examples" / "workflows"


def example_plan(name: str) -> Plan:
    return plan(parse_workflow((EXAMPLES / name).read_bytes()).model)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_plans_survive_storing(path: Path) -> None:
    made = example_plan(path.name)
    assert Plan.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_plan_of_the_full_example() -> None:
    made = example_plan("full.yaml")
    test, build, ask, deploy, afterwards = made.stages
    assert made.timeout_s == 6 * 3600
    assert made.concurrency is not None
    assert (made.concurrency.group, made.concurrency.limit, made.concurrency.policy) == (
        "shop-${{ inputs.TARGET }}", 1, "cancel_superseded")  # fmt: skip
    lint, unit, report = test.jobs
    assert (test.serial, test.fail_fast, test.pause_timeout_s) == (False, True, None)
    assert (lint.allow_failure, lint.cpu_millis, lint.memory_bytes, lint.timeout_s) == (True, 500, 512 * 2**20, 600)
    assert unit.retries == RetryPlan(2, ("OOMKilled", "NodeLost"), (75,), 10, 3, 120)
    assert (report.needs, report.optional_needs) == (("unit", "lint"), ("lint",))
    assert [job.needs for job in build.jobs] == [(), ("compile",)], "serial order is in the needs"
    assert (ask.type, ask.pause_timeout_s, ask.on_timeout) == ("pause", 2 * 86400, "cancel")
    assert deploy.when is not None
    assert afterwards.when == "run.failed"


def test_needs_of_earlier_stages_are_left_out_with_a_warning() -> None:
    text = """
name: x
stages:
- {name: a, jobs: {one: {script: x}}}
- {name: b, jobs: {two: {script: x, needs: [one]}}}
"""
    parsed = parse_workflow(text)
    assert "over by then" in parsed.warnings[0].message
    assert plan(parsed.model).stages[1].jobs[0].needs == ()


def test_t85_a_pause_cancels_unless_approval_is_asked_for() -> None:
    text = "name: x\nstages:\n- {name: a, type: pause%s}\n"
    stage = plan(parse_workflow(text % "").model).stages[0]
    assert (stage.on_timeout, stage.pause_timeout_s) == ("cancel", 7 * 86400)
    asked = plan(parse_workflow(text % ", pause: {on_timeout: approve}").model).stages[0]
    assert asked.on_timeout == "approve"


def test_a_plan_of_another_version_is_read() -> None:
    data = example_plan("full.yaml").to_json()
    data["stages"][0]["jobs"][0]["new_key"] = 1
    del data["stages"][0]["jobs"][0]["builtin"]
    assert Plan.from_json(data) == example_plan("full.yaml")


def test_t33_delays_do_not_overflow() -> None:
    retries = RetryPlan(max=100, delay_s=5, factor=2, max_delay_s=300)
    assert [retries.delay_before(attempt) for attempt in (1, 2, 3, 4)] == [0, 5, 10, 20]
    assert retries.delay_before(100) == 300
    assert RetryPlan(delay_s=1, factor=10, max_delay_s=1e9).delay_before(10**6) == 1e9


@given(
    st.integers(0, 10**6),
    st.floats(0, 1e6, allow_nan=False),
    st.floats(1, 10, allow_nan=False),
    st.floats(0.001, 1e7, allow_nan=False),
)
def test_t33_any_delay_is_capped_and_never_shrinks(attempt: int, delay: float, factor: float, cap: float) -> None:
    retries = RetryPlan(delay_s=delay, factor=factor, max_delay_s=cap)
    now, later = retries.delay_before(attempt), retries.delay_before(attempt + 1)
    assert 0 <= now <= later <= cap


def test_which_failures_are_retried() -> None:
    assert RetryPlan(max=1).applies_to("ExitCode", 1)
    codes = RetryPlan(max=1, exit_codes=(75,))
    assert codes.applies_to("ExitCode", 75)
    assert not codes.applies_to("ExitCode", 1)
    assert not codes.applies_to("OOMKilled", 75)
    assert RetryPlan(max=1, reasons=("OOMKilled",), exit_codes=(75,)).applies_to("OOMKilled")


# --- schema -----------------------------------------------------------------------------------------------------------


def as_data(text: str) -> Any:
    """YAML as an editor reads it (1.2: `on` is a word)."""
    data = yaml.safe_load(re.sub(r"^on:", "'on':", text, flags=re.MULTILINE))
    return json.loads(json.dumps(data))


def test_the_schema_file_is_fresh() -> None:
    assert schema.PATH.read_text(encoding="utf-8") == schema.as_text(), "run python -m shared.workflow.schema"


def test_examples_fit_the_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema.workflow_schema())
    validator = jsonschema.Draft202012Validator(schema.workflow_schema())
    examples = list(EXAMPLES.glob("*.yaml"))
    assert examples
    for path in examples:
        validator.validate(as_data(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "text",
    [
        "name: x\n",
        "name: x\nstages: []\n",
        "name: x\nstages: [{name: s, typ: pause}]\n",
        "name: x\nstages: [{name: s, type: puase}]\n",
        "name: x\nstages: [{name: s, jobs: {a: {scrip: x}}}]\n",
        "name: x\nstages: [{name: s, jobs: [{script: x}]}]\n",
        "name: x\ntimeout: 5 minutes\nstages: [{name: s, type: pause}]\n",
    ],
)
def test_the_schema_refuses_what_the_parser_refuses(text: str) -> None:
    with pytest.raises(WorkflowError):
        parse_workflow(text)
    assert not jsonschema.Draft202012Validator(schema.workflow_schema()).is_valid(as_data(text))


def test_every_key_of_the_file_is_documented() -> None:
    text = (schema.PATH.parents[1] / "workflow-file.md").read_text(encoding="utf-8")
    definitions = schema.workflow_schema()["$defs"]
    for part in [schema.workflow_schema(), *definitions.values()]:
        for key, about in part.get("properties", {}).items():
            assert f"`{key}" in text, f"docs/workflow-file.md says nothing about `{key}`"
            assert about.get("description"), f"the key {key} has no description"


def test_the_examples_in_the_documentation_are_right() -> None:
    text = (schema.PATH.parents[1] / "workflow-file.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(name: .*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        parse_workflow(block, "docs/workflow-file.md")


# --- any text at all --------------------------------------------------------------------------------------------------


def check_promise(text: str | bytes) -> None:
    try:
        parsed = parse_workflow(text)
    except WorkflowError as error:
        decoded = text if isinstance(text, str) else text.decode("utf-8", "replace")
        lines = re.split("\r\n|[\n\r\x85\u2028\u2029]", decoded.removeprefix("\ufeff"))
        assert error.faults  # noqa: PT017
        for fault in error.faults:
            assert 1 <= fault.line <= len(lines)
            assert 1 <= fault.column <= len(lines[fault.line - 1]) + 1
            assert 0 <= fault.caret <= len(fault.source_line)
            assert fault.message
            assert fault.render()
    else:
        assert isinstance(parsed, ParsedWorkflow)
        assert Workflow.from_json(json.loads(json.dumps(parsed.model.to_json()))) == parsed.model
        assert Plan.from_json(json.loads(json.dumps(plan(parsed.model).to_json()))) == plan(parsed.model)


@given(st.text())
@settings(max_examples=200)
def test_any_text_gives_a_workflow_or_faults(text: str) -> None:
    check_promise(text)


@given(st.text(alphabet=" \n\r\t:-[]{}'\"&*!|>%@`#,?ab1<\x85\u2028\ufeff~\\\ud800"))
@settings(max_examples=200)
def test_any_signs_of_yaml_give_a_workflow_or_faults(text: str) -> None:
    check_promise(text)


@given(st.binary())
def test_any_bytes_give_a_workflow_or_faults(data: bytes) -> None:
    check_promise(data)


EXAMPLE = (EXAMPLES / "full.yaml").read_text(encoding="utf-8")
PIECES = st.sampled_from(
    [
        "${{ ",
        " }}",
        "jobs.",
        "[",
        "{",
        "}",
        ": ",
        "\n",
        "- ",
        "*small",
        "&x ",
        "'",
        "null",
        "-1",
        "needs: [a]\n",
        "é",
        "<<: ",
    ]
)


@given(st.lists(st.tuples(st.integers(0, len(EXAMPLE)), st.integers(0, 30), PIECES), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_gives_a_workflow_or_faults(cuts: list[tuple[int, int, str]]) -> None:
    text = EXAMPLE
    for at, length, piece in cuts:
        text = text[:at] + piece + text[at + length :]
    check_promise(text)


WORDS = st.sampled_from(
    ["name", "stages", "jobs", "script", "component", "needs", "env", "inputs", "on", "push", "when", "type", "pause", "cache",
     "artifacts", "fetch", "retries", "timeout", "outputs", "schedule", "cron", "path", "paths", "max", "from", "options",
     "concurrency", "group", "default", "run.failed", "a", "b", "1", "0", "true", "5m", "${{ jobs.a.outputs.X }}", "", "~"]
)  # fmt: skip
TREES = st.recursive(
    st.one_of(WORDS, st.none(), st.integers(), st.booleans(), st.floats()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=5)),
    max_leaves=25,
)


@given(st.fixed_dictionaries({"name": st.just("x"), "stages": st.lists(st.fixed_dictionaries(
    {"name": WORDS, "jobs": st.one_of(TREES, st.dictionaries(WORDS, st.dictionaries(WORDS, TREES, max_size=6), max_size=4))},
), max_size=3)}, optional={"env": TREES, "inputs": TREES, "on": TREES, "concurrency": TREES}))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_any_data_gives_a_workflow_or_faults(tree: dict[str, Any]) -> None:
    check_promise(yaml.safe_dump(tree, allow_unicode=True))


def test_services_count_for_the_quota_together_with_their_job() -> None:
    job = "{script: x, resources: {cpu: 1}, services: {a: {image: x, resources: {cpu: 500m, memory: 8Mi}}}}"
    (stage,) = plan(parse_workflow(f"name: w\nstages: [{{name: s, jobs: {{a: {job}}}}}]").model).stages
    assert (stage.jobs[0].cpu_millis, stage.jobs[0].memory_bytes) == (1500, 8 << 20)
