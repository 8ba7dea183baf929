"""Workflow files: what is read, and how each fault is told."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from shared.workflow.faults import Fault, WorkflowError
from shared.workflow.model import Workflow
from shared.workflow.parser import ParsedWorkflow, parse_workflow

EXAMPLES = Path(__file__).parents[3] / "components" / "examples" / "workflows"
HEAD = "name: x\nstages:\n- name: s\n  jobs:\n"


def faults_of(text: str | bytes) -> list[Fault]:
    with pytest.raises(WorkflowError) as caught:
        parse_workflow(text)
    return list(caught.value.faults)


def only_fault(text: str | bytes) -> Fault:
    errors = [fault for fault in faults_of(text) if fault.severity == "error"]
    assert len(errors) == 1, [fault.render() for fault in errors]
    return errors[0]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_are_read_and_survive_storing(path: Path) -> None:
    parsed = parse_workflow(path.read_bytes(), path.name)
    stored = json.loads(json.dumps(parsed.model.to_json()))
    assert Workflow.from_json(stored) == parsed.model


def test_full_example_warns_of_what_does_nothing_yet_and_of_nothing_else() -> None:
    warnings = parse_workflow((EXAMPLES / "full.yaml").read_bytes()).warnings
    assert [warning.message.split("`")[1] for warning in warnings] == ["schedule", "image", "retention"]


def test_defaults() -> None:
    model = parse_workflow((EXAMPLES / "minimal.yaml").read_text()).model
    job = model.job("hello")
    assert (model.timeout, job.timeout, job.pending_timeout, job.grace) == (86400, 3600, 600, 10)
    assert (model.on.api, model.on.push, model.on.webhook) == (True, None, False)
    assert (job.retries.max, job.allow_failure, job.when) == (0, False, None)


def test_tencenthub_spelling_is_understood() -> None:
    parsed = parse_workflow((EXAMPLES / "tencenthub.yaml").read_text())
    model = parsed.model
    assert model.timeout == 3600, "a plain number is minutes"
    assert [warning.suggestion for warning in parsed.warnings] == ["60m"]
    assert model.environment == {"GREETING": "hello"}
    assert model.env["GREETING"].description == "What is said"
    assert model.stages[0].sequencing == "serial"
    assert model.job("job_0_0").resources.cpu == 1000
    assert model.job("job_0_1").inputs["_WORKFLOW_FLAG_CACHE"] == "true"
    assert model.job("wait").builtin == "workflow_pause"
    assert model.job("other").builtin == "run_flow"


def test_values_are_taken_as_written() -> None:
    env = parse_workflow("env: {A: no, B: 1.10, C: 0777, D: 1e3, E: , F: ~, G: 'x', H: 2020-01-01}\n" + HEAD
                         + "    a: {script: x}").model.environment  # fmt: skip
    assert env == {"A": "no", "B": "1.10", "C": "0777", "D": "1e3", "E": "", "F": "", "G": "x", "H": "2020-01-01"}


def test_options_keep_their_types() -> None:
    text = HEAD + "    a: {script: x, options: {a: 1, b: true, c: no, d: '1', e: [1.5, null]}}"
    assert parse_workflow(text).model.job("a").options == {"a": 1, "b": True, "c": "no", "d": "1", "e": [1.5, None]}


def test_short_forms_equal_long_forms() -> None:
    short = (
        HEAD
        + """
    a: {script: [x, y], outputs: [O], cache: d, artifacts: dist, retries: 2}
    b: {component: c, command: run it, needs: a, fetch: dist}
"""
    )
    long = (
        HEAD
        + r"""
    - name: a
      script: "x\ny"
      outputs: {O: ""}
      cache: [{name: d, paths: [d]}]
      artifacts: [{name: dist, paths: [dist]}]
      retries: {max: 2}
    - name: b
      component: c
      command: [sh, -ec, run it]
      needs: [{name: a, optional: false}]
      fetch: [{artifact: dist}]
"""
    )
    assert parse_workflow(short).model == parse_workflow(long).model


def test_services_in_short_and_long_form_are_the_same() -> None:
    short = (
        HEAD
        + """
    a:
      script: x
      services:
        db: {image: "pg:16", env: {P: 1}, ready: 5432}
        cache: redis:7
        seed: {image: s, command: fill it, ready: {command: check it, timeout: 5s}, resources: {cpu: 1, memory: 1Gi}}
"""
    )
    long = (
        HEAD
        + """
    - name: a
      script: x
      services:
      - {name: db, image: "pg:16", env: {P: "1"}, ready: {port: 5432}}
      - {name: cache, image: "redis:7"}
      - name: seed
        image: s
        command: [sh, -ec, fill it]
        ready: {command: [sh, -ec, check it], timeout: 5s}
        resources: {cpu: 1, memory: 1Gi}
"""
    )
    model = parse_workflow(short).model
    assert model == parse_workflow(long).model
    assert Workflow.from_json(model.to_json()) == model
    assert [(each.name, each.ready and each.ready.port) for each in model.job("a").services] == [
        ("db", 5432), ("cache", None), ("seed", None),
    ]  # fmt: skip


def test_t95_a_job_without_services_is_stored_as_the_version_before_reads_it() -> None:
    job = parse_workflow(HEAD + "    a: {script: x}").model.to_json()["stages"][0]["jobs"][0]
    assert "services" not in job


SERVICE_FAULTS = [
    ("{db: {}}", "`image` is missing", "db: {}"),
    ("{db: {image: x, ready: {}}}", "a service is ready by its `port` or by a `command`", "{}"),
    ("{db: {image: x, ready: {port: 1, command: y}}}", "a service is ready by its `port` or by a `command`", "{port"),
    ("{db: {image: x, ready: 70000}}", "`port` should be at most 65535", "70000"),
    ("{db: {image: x, prot: 1}}", "unknown key `prot`", "prot"),
    ("{Data Base: x}", "`name` has characters that are not allowed", "x}"),
    ("{db: {name: db, image: x}}", "the service `db` has its name before the `:`", "{db"),
    ("[{name: a, image: x}, {name: a, image: y}]", "two services are called `a`", "a, image: y"),
    ("{a: {image: x, ready: 1}, b: {image: y, ready: 1}}", "`a` has the port 1 already", "1}}"),
    ("{db: 'two words'}", "this is not the address of an image", "'two words'"),
    ("{db: '${{ secrets.X }}'}", "secrets", "${{ secrets"),
    ("{db: {image: x, env: {A: '${{ inputs.NO }}'}}}", "the workflow has no input `NO`", "${{ inputs"),
    ("{db: {image: x, command: 'run ${{ git.branch }}'}}", "in shell code would be run as code", "${{ git"),
    ("{db: {image: x, ready: {command: [test, '${{ git.branch }}']}}}", "git", "${{ git"),
    ("nothing", "`services`", "nothing"),
]


@pytest.mark.parametrize(("services", "message", "where"), SERVICE_FAULTS, ids=[each[0] for each in SERVICE_FAULTS])
def test_faults_of_services_are_told_in_their_place(services: str, message: str, where: str) -> None:
    text = HEAD + f"    a:\n      script: x\n      services: {services}\n"
    fault = only_fault(text)
    assert message in fault.message
    assert fault.path.startswith("stages.s.jobs.a.services")
    assert (fault.line, fault.column) == (7, 1 + f"      services: {services}".rindex(where))


def test_more_services_than_a_pod_should_have_are_refused() -> None:
    many = ", ".join(f"s{number}: x" for number in range(11))
    assert "10" in only_fault(HEAD + f"    a: {{script: x, services: {{{many}}}}}").message
    listed = ", ".join(f"{{name: s{number}, image: x}}" for number in range(11))
    assert "10" in only_fault(HEAD + f"    a: {{script: x, services: [{listed}]}}").message


def test_anchors_and_merge_keys() -> None:
    text = "x-base: &base {timeout: 5m, script: make}\n" + HEAD + "    a: {<<: *base, timeout: 1m}\n    b: *base\n"
    model = parse_workflow(text).model
    assert [(job.name, job.timeout, job.script) for _, job in model.jobs()] == [("a", 60, "make"), ("b", 300, "make")]


def test_a_fault_is_rendered_with_line_caret_and_suggestion() -> None:
    fault = only_fault(HEAD + "    build:\n      scirpt: make\n      script: make\n")
    assert (fault.line, fault.column, fault.path) == (6, 7, "stages.s.jobs.build.scirpt")
    keys = "name, component, script, command, inputs, env, needs, outputs, cache, artifacts, fetch, retries"
    assert fault.render().splitlines() == [
        "hubflow.yaml:6:7: unknown key `scirpt`",
        "  6 |       scirpt: make",
        "    |       ^",
        f"  expected: {keys} or one of 9 more",
        "  did you mean `script`?",
    ]


def test_the_caret_stands_under_wide_characters() -> None:
    fault = only_fault(HEAD + "    构建: {script: x, needs: [无]}\n")
    line, caret = fault.render().splitlines()[1:3]
    assert fault.source_line[fault.caret] == "无"
    before = line[: line.index("无")]
    assert len(caret) - 1 == len(before) + before.count("构") + before.count("建")


def test_all_faults_come_at_once() -> None:
    text = """\
name: x
timeout: 0
env: {A-B: 1, OK: "${{ nope.x }}"}
stages:
  - name: s
    type: puase
    jobs:
      a: {image: alpine, needs: [b]}
      b: {script: x, needs: [a], timeout: 30}
      c: {script: x, env: {X: "${{ jobs.zz.outputs.Y }}"}, when: "1 +"}
      c: {script: y}
"""
    found = {(fault.line, fault.message.split("`")[0].strip()) for fault in faults_of(text)}
    assert found == {
        (2, "a duration must be more than zero, not 0"),
        (3, ""),
        (3, "references cannot begin with"),
        (6, ""),
        (8, "unknown key"),
        (8, "these jobs wait for each other: a needs b needs a"),
        (9, ""),
        (10, "there is no job"),
        (10, "the condition ends too early"),
        (11, "the key"),
    }


CASES = [
    # (jobs of one stage, line in the file, start of the message, suggestion)
    ("    a: {script: x, needs: [b]}\n    zz: {script: x}", 5, "there is no job `b`", ""),
    ("    unit: {script: x}\n    b: {script: x, needs: [unti]}", 6, "there is no job `unti`", "unit"),
    ("    a: {script: x, needs: [a]}", 5, "the job `a` cannot need itself", ""),
    ("    a: {script: x, needs: [c]}\n    b: {script: x, needs: a}\n    c: {script: x, needs: b}", 5,
     "these jobs wait for each other: a needs c needs b needs a", ""),
    ("    - {name: a, script: x}\n    - {name: a, script: x}", 6, "two jobs are called `a`", ""),
    ("    a: {script: x, component: workflow_pause}", 5, "`workflow_pause` is done by Hubflow itself and runs no `script`", ""),
    ("    a: {timeout: 5m}", 5, "the job `a` runs nothing", ""),
    ("    a: {script: ''}", 5, "`script` is empty", ""),
    ("    a: {script: x, command: y}", 5, "a `script` has no `command`", ""),
    ("    a: {component: a b}", 5, "this is not the address of an image", ""),
    ("    a: {component: c, inputs: {A: 1}, env: {A: 2}}", 5, "`A` stands in `inputs` and in `env`", ""),
    ("    a: {script: x, env: {A B: 1}}", 5, "`A B` cannot be a name of a variable", "A_B"),
    ("    a: {script: x, env: {HUBFLOW_X: 1}}", 5, "`HUBFLOW_X`: names that begin with HUBFLOW_", ""),
    ("    a: {script: x, outputs: [A, A]}", 5, "the output `A` stands twice", ""),
    ("    a: {script: x, fetch: [dits]}\n    b: {script: x, artifacts: [dist]}", 5, "no job keeps an artifact", "dist"),
    ("    a: {script: x, fetch: [d]}\n    b: {script: x, artifacts: [d]}", 5, "the job `b` may not be over", ""),
    ("    a: {script: x, artifacts: ['dist/*.whl']}", 5, "`name` has characters that are not allowed", ""),
    ("    a: {script: x, retries: 101}", 5, "`max` should be at most 100", ""),
    ("    a: {script: x, retries: {reasons: [OOMKiled]}}", 5, "`OOMKiled` is no reason", "OOMKilled"),
    ("    a: {script: x, retries: {exit_codes: [0]}}", 5, "`exit_codes` should be at least 1", ""),
    ("    a: {script: x, allow_failure: yes}", 5, "`yes` is neither true nor false", "true"),
    ("    a: {script: x, resources: {memory: 512}}", 5, "512 of memory is too little", "512Mi"),
    ("    a: {script: x, resources: {cpu: -1}}", 5, "`-1` is not an amount of cpu", ""),
    ("    a: {script: x, cache: [{name: c}]}", 5, "`paths` is missing", ""),
    ("    a: {script: {x: y}}", 5, "a text is needed here, but this is a map", ""),
    ("    a: {script: x, when: runn.failed}", 5, "there is no variable `runn`", "run"),
    ("    a: {script: x, when: run.faild}", 5, "`run` has no `faild`", "failed"),
    ("    a: {script: x, when: jobs.b.state == 'failed'}", 5, "there is no job `b`", ""),
    ("    a: {script: 'echo ${{ git.branch }}'}", 5, "${{ git.branch }} in shell code would be run as code", ""),
    ("    a: {component: c, command: 'echo ${{ git.branch }}'}", 5, "${{ git.branch }} in shell code", ""),
    ("    a: {script: x, env: {A: '${{ git.brunch }}'}}", 5, "`git` has no `brunch`", "branch"),
    ("    a: {script: x, env: {A: '${{ inputs.X }}'}}", 5, "the workflow has no input `X`", ""),
    ("    a: {script: x, env: {A: '${{ env.X }}'}}", 5, "there is no global variable `X`", ""),
    ("    a: {script: x, env: {A: '${{ pause.approve_url }}'}}", 5, "`pause` cannot be used here", ""),
    ("    a: {component: 'x:${{ secrets.X }}'}", 5, "`secrets` cannot be used here", ""),
    ("    a: {script: x, env: {A: '${{ jobs.a.outputs.X }}'}}", 5, "a job cannot use what it makes itself", ""),
    ("    a: {script: x, env: {A: '${{ jobs.a.X }}'}}", 5, "a reference to a job names one of its outputs", ""),
    ("    a: {script: x, env: {A: '${{ 1 + 1 }}'}}", 5, "this reference cannot be read", ""),
    ("    a: {script: x, env: {A: '${{ git.branch'}}", 5, "this reference cannot be read", ""),
    ("    a: {script: x, outputs: [V]}\n    b: {script: x, needs: a, env: {A: '${{ jobs.a.outputs.W }}'}}", 6,
     "the job `a` declares no output `W`", ""),
    ("    a: {script: x, outputs: [V]}\n    b: {script: x, env: {A: '${{ jobs.a.outputs.V }}'}}", 6,
     "the job `a` may not be over when this one starts", ""),
    ("    ? [a]\n    : {script: x}\n    b: {script: x}", 5, "a list cannot be a key", ""),
    ("    a: !!python/object:os.system {script: x}", 5, "the tag", ""),
    ("    '': {script: x}", 5, "a name cannot be empty", ""),
    ("    a/b: {script: x}", 5, "`a/b` cannot be a name", ""),
    ("    - script: x", 5, "`name` is missing", ""),
    ("    - just a text", 5, "an item of `jobs` should be a map, but this is a text", ""),
    ("    x", 5, "`jobs` should be a list, but this is a text", ""),
]  # fmt: skip


@pytest.mark.parametrize(("jobs", "line", "message", "suggestion"), CASES, ids=lambda value: str(value)[:50])
def test_each_fault_of_a_job(jobs: str, line: int, message: str, suggestion: str) -> None:
    fault = only_fault(HEAD + jobs + "\n")
    assert (fault.line, fault.suggestion) == (line, suggestion)
    assert fault.message.startswith(message)
    assert not any(word in fault.message for word in ("Input should", "valid dictionary", "Field required"))


TOP_CASES = [
    ("", 1, "the file is empty"),
    ("- a\n", 1, "a workflow file is a map, but this is a list"),
    ("just text", 1, "a workflow file is a map, but this is a text"),
    ("name: x\n", 1, "`stages` is missing"),
    ("name: x\nstages: []\n", 2, "`stages` should not be empty"),
    ("name: x\nstages: {}\n", 2, "`stages` should be a list, but this is a map"),
    ("name: x\nstages:\n- name: s\n", 3, "the stage `s` has no jobs"),
    ("name: x\nstages:\n- name: s\n  jobs: []\n", 4, "a stage needs at least one job"),
    ("name: x\nstages:\n- name: s\n  pause: {}\n  jobs: {a: {script: x}}\n", 4, "only a stage of type pause can pause"),
    ("on: puhs\n" + HEAD + "    a: {script: x}", 1, "`puhs` cannot stand alone as a trigger"),
    ("on: {schedule: '61 * * * *'}\n" + HEAD + "    a: {script: x}", 1, "`61 * * * *` is not a schedule"),
    ("on: {schedule: [{cron: '1 * * * *', timezone: Europe/Berlinn}]}\n" + HEAD + "    a: {script: x}", 1,
     "`Europe/Berlinn` is no time zone"),
    ("inputs: {A: {type: choice}}\n" + HEAD + "    a: {script: x, env: {A: '${{ inputs.A }}'}}", 1,
     "an input of type choice needs `choices`"),
    ("inputs: {A: {type: number, default: x}}\n" + HEAD + "    a: {script: x, env: {A: '${{ inputs.A }}'}}", 1,
     "`x` is not a number"),
    ("concurrency: {group: g, limit: 0}\n" + HEAD + "    a: {script: x}", 1, "`limit` should be at least 1"),
    ("env: {A: '${{ jobs.a.outputs.X }}'}\n" + HEAD + "    a: {script: x}", 1, "`jobs` cannot be used here"),
    ("name: x\nname: y\nstages:\n- {name: s, jobs: {a: {script: x}}}\n", 2, "the key `name` stands here twice"),
    ("a: [1,\n", 1, "a value is missing here"),
    ("a: b: c\n", 1, "a `:` cannot stand here"),
    ("a:\n\tb: c\n", 2, "a tab cannot be used for indentation"),
    ("a: @x\n", 1, "a text cannot begin with `@`"),
    ("a: 'x\n", 1, "the file ends inside a quoted text"),
    ("a: \x00\n", 1, "the character U+0000 is not allowed"),
    ("a: *b\n", 1, "no anchor `&b` stands before this alias"),
    ("a: &b [*b]\n", 1, "the alias `*b` stands inside the very value that it names"),
    ("a: 1\n---\nb: 2\n", 2, "a second document begins here"),
    (b"a: \xff\n", 1, "the byte 0xFF is not text in UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "message"), TOP_CASES, ids=lambda value: str(value)[:40])
def test_each_fault_of_a_file(text: str | bytes, line: int, message: str) -> None:
    fault = only_fault(text)
    assert (fault.line, fault.message[: len(message)]) == (line, message)


@pytest.mark.parametrize("key", ["timeout", "pending_timeout", "grace"])
@pytest.mark.parametrize("value", ["0", "0s", "-5m", "-1", "0.0h"])
def test_t11_zero_and_negative_timeouts_are_refused(key: str, value: str) -> None:
    fault = only_fault(HEAD + f"    a: {{script: x, {key}: {value}}}\n")
    assert fault.message == f"a duration must be more than zero, not {value}"


@pytest.mark.parametrize("value", ["0", "-5", "0m"])
def test_t11_also_for_the_whole_workflow_and_pauses(value: str) -> None:
    assert "more than zero" in only_fault(f"timeout: {value}\n" + HEAD + "    a: {script: x}").message
    paused = f"name: x\nstages:\n- {{name: s, type: pause, pause: {{timeout: {value}}}}}\n"
    assert "more than zero" in only_fault(paused).message


def test_t34_three_hundred_reordered_and_quoted_names_stay_apart() -> None:
    names = [f"job {number}" for number in range(150)] + [f"'job-{number}'" for number in range(150)]
    jobs = "".join(f"    {name}: {{script: x}}\n" for name in names)
    model = parse_workflow(HEAD + jobs).model
    assert len({job.name for _, job in model.jobs()}) == 300
    again = parse_workflow(HEAD + "".join(reversed(jobs.splitlines(keepends=True)))).model
    assert sorted(job.name for _, job in again.jobs()) == sorted(job.name for _, job in model.jobs())


def test_t50_long_and_unicode_names() -> None:
    name = "构建-ümläut " + "n" * 189 + "!"
    assert len(name) == 200
    assert parse_workflow(HEAD + f"    '{name}': {{script: x}}").model.job(name).script == "x"
    assert "may have 200 characters" in only_fault(HEAD + f"    'n{name}': {{script: x}}").message


HOSTILE = {
    "billion laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)),
    "deep brackets": "[" * 100_000,
    "deep brackets with values": "[1," * 60_000,
    "deep braces": "{a: " * 60_000,
    "deep dashes": "- " * 100_000,
    "deep question marks": "? " * 100_000,
    "one mebibyte": "a" * 2**20,
    "one mebibyte of YAML": HEAD + "    - {name: a, script: x}\n" * 40_000,
    "many values": "- a: b\n" * 36_000,
    "wide list": "[" + "[]," * 80_000 + "]",
    "wide map": "".join(f"k{i}: 1\n" for i in range(9_000)),
    "empty lines": "\n" * 250_000,
    "many documents": "---\n" * 60_000,
    "cycle of 1000": HEAD + "".join(f"    j{i}: {{script: x, needs: [j{(i + 1) % 1000}]}}\n" for i in range(1000)),
    "cycles of 2": HEAD + "".join(f"    j{i}: {{script: x, needs: [j{i ^ 1}]}}\n" for i in range(600)),
    "too many jobs": HEAD + "".join(f"    j{i}: {{script: x}}\n" for i in range(1001)),
    "unknown needs": HEAD + "".join(f"    j{i}: {{script: x, needs: [k{i}]}}\n" for i in range(600)),
    "unknown outputs": HEAD
    + "".join(f"    j{i}: {{script: x, env: {{A: '${{{{ jobs.k{i}.outputs.X }}}}'}}}}\n" for i in range(600)),
    "duplicate names": HEAD + "    - {name: a, script: x}\n" * 900,
    "duplicate keys": HEAD + "    a: {script: x}\n" * 1400,
    "unclosed references": HEAD + "    a: {script: x, env: {A: '" + "${{ " * 60_000 + "'}}\n",
    "wrong references": HEAD + "    a: {script: x, env: {A: '" + "${{ jobs.kk.outputs.X }} " * 9_000 + "'}}\n",
    "bad time zones": "on:\n  schedule:\n" + "  - {cron: '* * * * *', timezone: Europe/Berlinn}\n" * 1000 + HEAD,
    "long conditions": HEAD + "".join(f"    j{i}: {{script: x, when: '{'(' * 300}{i}'}}\n" for i in range(300)),
}


def machine_pace() -> float:
    """How much slower than when it is quiet the machine is just now (1: not at all), by a piece of work of known length."""
    start = time.process_time()
    sum(i * i for i in range(100_000))
    return max(1.0, (time.process_time() - start) / 0.0065)


@pytest.mark.parametrize("kind", HOSTILE)
def test_t51_hostile_files_are_refused_in_less_than_100_ms(kind: str) -> None:
    spent = []
    for _ in range(4):  # the best of four: other work on this machine is not what is measured
        pace = machine_pace()
        start = time.process_time()
        faults = faults_of(HOSTILE[kind])
        spent.append((time.process_time() - start) / pace)
    assert min(spent) < 0.1
    assert 1 <= len(faults) <= 50
    assert sum(len(fault.source_line) for fault in faults) < 10_000


def test_warnings_do_not_refuse() -> None:
    text = "inputs: {UNUSED: 1}\nenv: {A: 1}\n" + HEAD + "    a: {script: x, env: {A: 2}}\n"
    parsed = parse_workflow(text)
    assert isinstance(parsed, ParsedWorkflow)
    assert [(fault.line, fault.severity) for fault in parsed.warnings] == [(1, "warning"), (7, "warning")]
    assert "warning: no job uses the input `UNUSED`" in parsed.warnings[0].render()


def test_places_inside_block_scalars() -> None:
    text = HEAD + "    a:\n      script: |\n        one\n        echo ${{ git.ref }}\n"
    fault = only_fault(text)
    assert (fault.line, fault.column) == (8, 14)
    folded = HEAD + "    a:\n      script: x\n      when: >\n        git.branch == 'x'\n        && nope\n"
    assert (only_fault(folded).line, only_fault(folded).column) == (9, 12)


def test_the_error_is_a_problem_document() -> None:
    with pytest.raises(WorkflowError) as caught:
        parse_workflow("name: x\n", "flows/a.yaml")
    assert (caught.value.code, caught.value.status) == ("invalid-workflow", 422)
    first = caught.value.details["faults"][0]
    assert (first["file"], first["line"], first["column"]) == ("flows/a.yaml", 1, 1)
    assert "flows/a.yaml:1:1: `stages` is missing" in str(caught.value)
