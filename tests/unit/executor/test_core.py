"""From a job to its document."""

from __future__ import annotations

import json
import re
import subprocess
import uuid
from typing import Any

import pytest

from services.executor.core import (
    Claim,
    Component,
    Composed,
    Facts,
    Place,
    compose,
    document,
    script_command,
    task_detail,
    wanted,
)
from shared.errors import PermanentError
from shared.runtime.protocol import Resources, ServiceSpec
from shared.workflow.checks import SET_BY_HUBFLOW
from shared.workflow.parser import parse_workflow

RUN = uuid.UUID("0190c000-0000-7000-8000-000000000001")
PLACE = Place(
    "https://hub.example.test", "hub.example.test", "https://hub.example.test/d/a", "https://hub.example.test/d/c"
)


def claim_of(source: str, job: str = "a", **values: Any) -> Claim:
    model = parse_workflow(source, "w.yaml").model
    stage = next(stage for stage, each in model.jobs() if each.name == job)
    return Claim(
        container="hf-a-1-x", tenant="acme", run=RUN, number=9412, stage=stage.name, job=job, attempt=1,
        workflow=model.name, version=3, model=model,
        **{"trigger": {"type": "api", "by": "token:x"}, "inputs": {}, **values},
    )  # fmt: skip


def composed(claim: Claim, facts: Facts | None = None, component: Component | None = None) -> Composed:
    stage, job = next((stage, job) for stage, job in claim.model.jobs() if job.name == claim.job)
    return compose(claim, stage, job, facts or Facts(), component or Component(), PLACE)


def one(job: str, more: str = "") -> str:
    return f"name: w\n{more}\nstages: [{{name: s, jobs: {{a: {job}}}}}]\n"


def test_services_are_rendered_and_have_their_own_variables_only() -> None:
    services = (
        '{db: {image: "pg:${{ inputs.V }}", env: {P: "${{ secrets.PW }}"}, ready: {port: 5, timeout: 9s}, '
        'resources: {memory: 1Gi}}, seed: {image: s, command: [run, "${{ jobs.b.outputs.X }}"], ready: {command: ok}}}'
    )
    source = "name: w\ninputs: {V: '16'}\nenv: {G: g}\nstages:\n- {name: f, jobs: {b: {script: x}}}\n"
    claim = claim_of(source + f"- {{name: s, jobs: {{a: {{script: x, services: {services}}}}}}}", inputs={"V": "16"})
    _stage, job = next((stage, job) for stage, job in claim.model.jobs() if job.name == "a")
    need = wanted(claim, job, Component())
    assert (need.secrets, need.jobs) == ({"PW", "DOCKER_AUTH_CONFIG"}, {"b"})
    facts = Facts(secrets={"PW": "s3cret"}, jobs={"b": {"state": "succeeded", "outputs": {"X": "a b"}}})
    db, seed = composed(claim, facts).services
    assert db == ServiceSpec(
        "db", "pg:16", env={"P": "s3cret"}, port=5, ready_seconds=9.0, resources=Resources(memory_bytes=1 << 30)
    )
    assert (seed.command, seed.check, seed.env) == (("run", "a b"), ("sh", "-ec", "ok"), {})


def test_engine_variables_cannot_be_overridden_but_flags_can() -> None:
    env = composed(
        claim_of(one('{script: "true", env: {_WORKFLOW_FLOW_TASK_ID: "1", _WORKFLOW_FLAG_CACHE: "True"}}'))
    ).env
    assert env["_WORKFLOW_FLOW_TASK_ID"] == "9412"
    assert env["_WORKFLOW_FLAG_CACHE"] == "True"
    assert env["HUBFLOW_RUN"] == str(RUN)
    assert env["_WORKFLOW_FLOW_URL"] == "hub.example.test/acme/w/w"


def test_what_validation_warns_of_is_set_in_every_job() -> None:
    variables = ", ".join(f"{name}: mine" for name in SET_BY_HUBFLOW)
    env = composed(claim_of(one(f'{{script: "true", env: {{{variables}}}}}', f"env: {{{variables}}}"))).env
    assert [name for name in SET_BY_HUBFLOW if env[name] == "mine"] == []


def test_the_cache_flag_is_always_defined_and_gives_a_shared_directory() -> None:
    plain = composed(claim_of(one('{script: "true"}')))
    assert (plain.env["_WORKFLOW_FLAG_CACHE"], plain.shared_directory) == ("false", "")
    flagged = composed(claim_of(one('{script: "true", inputs: {_WORKFLOW_FLAG_CACHE: tRUE}}')))
    assert flagged.shared_directory == str(RUN)


@pytest.mark.parametrize(
    ("git", "ref", "kind"),
    [
        ({"branch": "main", "commit": "c0"}, "main", "branch"),
        ({"tag": "v1", "commit": "c0"}, "v1", "tag"),
        ({"commit": "c0"}, "c0", "commit"),
    ],
)
def test_git_variables(git: dict[str, str], ref: str, kind: str) -> None:
    trigger = {"type": "push", "git": {**git, "clone_url": "https://u:p@h/x.git", "message": None}}
    env = composed(claim_of(one('{script: "true"}'), trigger=trigger)).env
    assert (env["_WORKFLOW_GIT_REF"], env["_WORKFLOW_GIT_TYPE"]) == (ref, kind)
    assert env["_WORKFLOW_GIT_CLONE_URL"] == "https://u:p@h/x.git"
    assert env["_WORKFLOW_BUILD_TYPE"] == "webhook"


def test_known_names_are_expanded_and_all_others_left_to_the_shell() -> None:
    source = one(
        '{component: alpine, inputs: {CMD: "echo ${GLOBAL} ${x} ${HUBFLOW_JOB} $HOME ${OTHER}", OTHER: o}}',
        "env: {GLOBAL: g}",
    )
    assert composed(claim_of(source)).env["CMD"] == "echo g ${x} a $HOME ${OTHER}"


def test_references_are_replaced_in_globals_and_inputs() -> None:
    source = one(
        '{script: "true", env: {A: "${{ env.FROM }}-${{ secrets.S }}-${{ workflow.version }}"}}',
        'inputs: {who: x}\nenv: {FROM: "${{ inputs.who }}!"}',
    )
    claim = claim_of(source, inputs={"who": "ann"})
    assert composed(claim, Facts(secrets={"S": "s3"})).env["A"] == "ann!-s3-3"
    with pytest.raises(PermanentError, match="no secret S") as raised:
        composed(claim)
    assert raised.value.reason == "BadInput"


@pytest.mark.parametrize(
    ("job", "what"),
    [
        ('{component: "${{ inputs.V }}"}', "`component` came to nothing: ${{ inputs.V }} is empty"),
        ('{component: " ${{ env.G }}", command: [x]}', "`component` came to nothing"),
        ('{script: x, services: {db: {image: "${{ inputs.V }}"}}}', "`image` of the service db came to nothing"),
    ],
)
def test_an_image_that_comes_to_nothing_is_told_with_where_it_comes_from(job: str, what: str) -> None:
    source = one(job, 'inputs: {V: ""}\nenv: {G: "${{ inputs.V }}"}')
    with pytest.raises(PermanentError, match=re.escape(what)) as raised:
        composed(claim_of(source, inputs={"V": ""}))
    assert raised.value.reason == "BadInput"


def test_a_script_whose_component_comes_to_nothing_runs_where_scripts_do() -> None:
    source = one('{component: "${{ inputs.V }}", script: x}', "inputs: {V: ''}")
    assert composed(claim_of(source, inputs={"V": ""})).image == ""


def test_nothing_is_put_into_shell_code() -> None:
    job = '{component: alpine, command: ["/bin/sh", "-c", "echo $X ${{ nonsense }}"]}'
    assert composed(claim_of(one(job))).command[2] == "echo $X ${{ nonsense }}"
    job = '{component: alpine, command: [echo, "${{ run.number }}"]}'
    assert composed(claim_of(one(job))).command == ["echo", "9412"]


def test_what_an_image_says_is_the_default_and_is_never_expanded() -> None:
    component = Component(("/bin/run", "x"), {"A": "label", "B": "${{ secrets.S }} ${CI}"}, ("OUT",))
    made = composed(claim_of(one("{component: alpine, inputs: {A: mine}, outputs: [MINE]}")), component=component)
    assert made.command == ["/bin/run", "x"]
    assert (made.env["A"], made.env["B"]) == ("mine", "${{ secrets.S }} ${CI}")
    assert made.outputs == ["MINE", "OUT"]


def test_flags_of_the_label_count_and_bring_the_hub_credentials() -> None:
    claim = claim_of(one("{component: maven}"))
    _stage, job = next(iter(claim.model.jobs()))
    component = Component(defaults={"_WORKFLOW_FLAG_HUB_TOKEN": "true"})
    assert {"HUB_USER", "HUB_TOKEN"} <= wanted(claim, job, component).secrets
    env = composed(claim, Facts(secrets={"HUB_USER": "u", "HUB_TOKEN": "t"}), component).env
    names = ("HUB_USER", "HUB_TOKEN", "_WORKFLOW_HUB_USER", "_WORKFLOW_HUB_TOKEN")
    assert [env[name] for name in names] == ["u", "t", "u", "t"]
    assert "HUB_TOKEN" not in composed(claim, Facts(secrets={"HUB_TOKEN": "t"})).env


def test_a_plain_job_needs_no_further_question() -> None:
    claim = claim_of(one('{script: "true", env: {X: "${{ run.id }}"}}'))
    _stage, job = next(iter(claim.model.jobs()))
    assert not wanted(claim, job, Component())


def test_task_detail_has_tencenthubs_shape_and_no_secret() -> None:
    source = one('{script: "true", inputs: {_WORKFLOW_FLAG_TASK_DETAIL: true, P: "${{ secrets.S }}"}}')
    claim = claim_of(source, trigger={"type": "push", "git": {"branch": "m", "clone_url": "https://u:pw@h/x"}})
    _stage, job = next(iter(claim.model.jobs()))
    assert wanted(claim, job, Component()).detail
    detail = task_detail(
        claim, PLACE, [{"name": "a", "state": "succeeded", "finished_at": 1, "outputs": {"X": "1"}}], []
    )
    data = json.loads(detail)
    assert data["stages"][0]["jobs"][0]["status"] == "success"
    assert json.loads(data["stages"][0]["jobs"][0]["output_value"]) == {"X": "1"}
    assert json.loads(data["stages"][0]["jobs"][0]["input_value"])["_WORKFLOW_GIT_REF"] == "m"
    assert data["Namespace"] == "acme"
    assert "pw" not in detail
    env = composed(claim, Facts(detail=detail, secrets={"S": "x"})).env
    assert env["_WORKFLOW_TASK_DETAIL"] == env["WORKFLOW_TASK_DETAIL"] == detail


def test_pause_links_only_in_pause_stages() -> None:
    assert "HUBFLOW_APPROVE_URL" not in composed(claim_of(one('{script: "true"}'))).env
    source = (
        "name: w\nstages: [{name: s, type: pause, jobs: {a: {script: 'true', env: {X: '${{ pause.cancel_url }}'}}}}]\n"
    )
    env = composed(claim_of(source)).env
    assert env["_WORKFLOW_FLOW_PAUSE_HOOK_RESUME_API"] == PLACE.approve_url
    assert env["_WORKFLOW_FLOW_PAUSE_HOOK_STOP_API"] == env["X"] == PLACE.cancel_url


@pytest.mark.parametrize("size", [10, 96 * 1024, 96 * 1024 + 1, 250_000])
def test_scripts_of_any_length_reach_the_shell_whole(size: int) -> None:
    script = "# " + "é" * (size // 2) + "\necho $# \"$0\" 'it''s'\nfalse\necho never"
    command = script_command(script)
    assert max(len(word.encode()) for word in command) < 128 * 1024
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"0 sh its\n")


def test_the_document_has_what_the_wrapper_wants() -> None:
    claim = claim_of(one('{script: "true", timeout: 5m, grace: 3s, workdir: src}'))
    job = claim.model.job("a")
    made = document(claim, job, composed(claim), restore=[], save=[], overflow=None, trace="t")
    assert (made["version"], made["attempt"], made["workdir"]) == (1, "hf-a-1-x", "src")
    assert (made["timeout_s"], made["grace_s"], made["command"]) == (300, 3, ["sh", "-ec", "true"])
    json.dumps(made)
