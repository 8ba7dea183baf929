"""What incoming messages mean."""

from __future__ import annotations

from typing import Any

import pytest

from services.trigger import core
from services.trigger.core import Incoming, Push
from services.trigger.providers.github import GITHUB
from services.trigger.providers.protocol import Request, push_of
from shared.errors import UserError
from shared.workflow.model import Workflow
from shared.workflow.parser import parse_workflow

COMMIT = "a" * 40


def workflow(head: str = "") -> Workflow:
    return parse_workflow(f"name: w\n{head}\nstages: [{{name: s, jobs: {{j: {{script: 'true'}}}}}}]\n").model


@pytest.mark.parametrize(
    ("ref", "commit", "git"),
    [
        ("", "", {}),
        ("main", "", {"ref": "refs/heads/main", "branch": "main", "type": "branch"}),
        ("refs/tags/v1", COMMIT, {"ref": "refs/tags/v1", "tag": "v1", "type": "tag", "commit": COMMIT}),
        (COMMIT, "", {"commit": COMMIT, "type": "commit"}),
        ("feature/x", "", {"ref": "refs/heads/feature/x", "branch": "feature/x", "type": "branch"}),
    ],
)
def test_a_ref_is_understood_as_people_write_it(ref: str, commit: str, git: dict[str, str]) -> None:
    assert core.git_of_request(ref, commit, "") == git


def test_a_commit_must_be_whole() -> None:
    with pytest.raises(UserError, match="no commit"):
        core.git_of_request("main", "abc123", "")


def test_the_group_of_a_run_is_rendered_with_what_is_known_at_its_start() -> None:
    model = workflow(
        "inputs: {target: {default: dev}}\nenv: {PLACE: 'at-${{ inputs.target }}'}\n"
        "concurrency: {group: '${{ git.branch }}-${{ env.PLACE }}'}"
    )
    trigger = {"type": "push", "by": "ada", "git": core.git_of_push(Push("refs/heads/main", COMMIT))}
    assert core.start(model, 1, trigger, {}).concurrency_group == "main-at-dev"
    assert core.start(model, 1, {"type": "api", "by": "x"}, {}).concurrency_group == "-at-dev"


def test_a_group_that_comes_to_nothing_is_none() -> None:
    model = workflow("concurrency: '${{ git.branch }}'")
    assert core.start(model, 1, {"type": "api", "by": "x"}, {}).concurrency_group is None


def test_a_group_looks_at_its_own_variables_only() -> None:
    model = workflow("env: {A: 'a-${B}', B: b, C: '${{ secrets.X }}'}\nconcurrency: 'g-${{ env.A }}'")
    assert core.start(model, 1, {"type": "api", "by": "x"}, {}).concurrency_group == "g-a-b"


def test_a_group_that_cannot_be_named_is_told() -> None:
    model = workflow("concurrency: {group: g}")  # as earlier versions have let it in
    group = model.concurrency.model_copy(update={"group": "g-${{ run.number }}"}) if model.concurrency else None
    with pytest.raises(UserError, match=r"`g-\$\{\{ run.number \}\}` cannot be named") as caught:
        core.start(model.model_copy(update={"concurrency": group}), 1, {"type": "api", "by": "x"}, {})
    assert (caught.value.code, caught.value.status) == ("bad-concurrency-group", 422)


def test_a_long_group_is_one_that_an_index_can_hold() -> None:
    model = workflow("inputs: {a: {}}\nconcurrency: {group: 'g-${{ inputs.a }}'}")
    groups = [
        core.start(model, 1, {"type": "api", "by": "x"}, {"a": "z" * 300_000 + end}).concurrency_group for end in "abb"
    ]
    assert groups[0] != groups[1] == groups[2]
    assert groups[0] is not None
    assert groups[0].startswith("g-zzz")
    assert len(groups[0]) < 300


def test_a_ref_that_cannot_be_is_refused() -> None:
    assert core.git_of_request("m" * core.LONGEST_PATH, "", "")["branch"] == "m" * core.LONGEST_PATH
    with pytest.raises(UserError, match="more than 4096 characters"):
        core.git_of_request("m" * (core.LONGEST_PATH + 1), "", "")


def test_a_webhook_gives_only_declared_inputs() -> None:
    model = workflow("inputs: {a: {}, b: {}}")
    incoming = Incoming("webhook", "d", values={"a": 1, "c": 2})
    assert core.inputs_of(model, incoming) == {"a": 1}


@pytest.mark.parametrize(("on", "starts"), [("on: {webhook: true}", True), ("on: {api: true}", False), ("", False)])
def test_a_webhook_starts_only_what_wants_it(on: str, starts: bool) -> None:
    assert (core.reason_to_ignore(workflow(on), Incoming("webhook", "d")) == "") == starts


@pytest.mark.parametrize(
    ("state", "may"),
    [(None, True), ("pending", False), ("running", False), ("paused", False), ("succeeded", False), ("failed", True),
     ("cancelled", True), ("timed_out", True)],
)  # fmt: skip
def test_t65_only_what_did_not_succeed_may_start_again(state: str | None, may: bool) -> None:
    assert core.may_start_again(state) == may


def pushed(**changes: Any) -> Push:
    payload = {
        "ref": "refs/heads/main", "before": "b" * 40, "after": COMMIT,
        "commits": [{"added": ["a"], "modified": ["b"], "removed": ["c"]}, {"added": ["d"]}],
    }  # fmt: skip
    return push_of(payload | changes, lambda _: True)


def test_paths_are_known_only_where_all_are() -> None:
    assert pushed().paths == {"a", "b", "c", "d"}
    for changes in ({"before": "0" * 40}, {"forced": True}, {"commits": []}, {"commits": None}, {"commits": "x"}):
        assert pushed(**changes).paths is None
    assert push_of({"ref": "r", "after": COMMIT, "commits": [{}]}, lambda _: False).paths is None


def test_the_commit_of_an_annotated_tag_is_what_it_points_at() -> None:
    assert pushed(ref="refs/tags/v1", head_commit={"id": "d" * 40}).commit == "d" * 40
    assert pushed(ref="refs/tags/v1", head_commit=None).commit == COMMIT


@pytest.mark.parametrize("value", [None, 1, [], {}, "x", True])
def test_strange_values_of_a_push_do_no_harm(value: Any) -> None:
    fields = ("before", "commits", "head_commit", "repository", "pusher", "forced", "deleted")
    for field in fields:
        assert pushed(**{field: value}).ref == "refs/heads/main"


def test_signatures_of_another_body_are_refused() -> None:
    good = Request({"X-Hub-Signature-256": "sha256=" + "0" * 64}, "application/json", b"{}")
    with pytest.raises(UserError) as caught:
        GITHUB.verify(good, "secret")
    assert caught.value.status == 401
