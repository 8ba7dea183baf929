"""Where the server is: options before environment before the nearest file; a token goes only to its own server."""

import stat

import pytest

from cli import context
from cli.context import Context
from cli.failure import Failure


@pytest.fixture
def project(tmp_path):
    state = tmp_path / ".hubflow"
    state.mkdir()
    context.write(state / "context.json", Context("http://127.0.0.1:8080", "hf_t", "dev"))
    (tmp_path / "deep" / "down").mkdir(parents=True)
    return tmp_path


def test_the_file_is_found_from_below_and_is_private(project):
    found = context.resolve({}, {}, project / "deep" / "down")
    assert (found.url, found.token, found.tenant) == ("http://127.0.0.1:8080", "hf_t", "dev")
    assert stat.S_IMODE((project / ".hubflow" / "context.json").stat().st_mode) == 0o600


def test_the_environment_comes_before_the_file_and_options_before_both(project):
    environment = {"HUBFLOW_URL": "http://127.0.0.1:8080", "HUBFLOW_TOKEN": "hf_e", "HUBFLOW_TENANT": "acme"}
    found = context.resolve({"tenant": "other"}, environment, project)
    assert (found.token, found.tenant) == ("hf_e", "other")


def test_another_token_than_the_file_s_does_not_get_the_file_s_tenant(project):
    named = str(project / ".hubflow" / "context.json")
    found = context.resolve({}, {"HUBFLOW_TOKEN": "hf_e", "HUBFLOW_CONTEXT": named}, project)
    assert (found.token, found.tenant, found.token_from_file) == ("hf_e", "", False)


def test_a_token_of_the_environment_is_not_sent_to_the_server_of_a_file_that_was_merely_found(project):
    with pytest.raises(Failure, match=r"HUBFLOW_TOKEN is not sent to http://127\.0\.0\.1:8080") as caught:
        context.resolve({}, {"HUBFLOW_TOKEN": "hf_e"}, project / "deep" / "down")
    assert "hf_e" not in caught.value.message + caught.value.hint
    assert context.resolve({"url": "http://127.0.0.1:8080"}, {"HUBFLOW_TOKEN": "hf_e"}, project).token == "hf_e"
    assert context.resolve({}, {"HUBFLOW_TOKEN": "hf_t"}, project).token == "hf_t"  # the file has it already


def test_a_found_file_of_another_user_is_left_out(project, monkeypatch, capsys):
    theirs = project / "deep" / ".hubflow"
    theirs.mkdir()
    context.write(theirs / "context.json", Context("http://theirs", "hf_x"))
    assert context.resolve({}, {}, project / "deep").url == "http://theirs"
    monkeypatch.setattr(context.os, "geteuid", lambda: theirs.stat().st_uid + 1)
    with pytest.raises(Failure, match="no server is known"):
        context.resolve({}, {}, project / "deep")
    assert f"{theirs / 'context.json'} is left out" in capsys.readouterr().err
    named = context.resolve({}, {"HUBFLOW_CONTEXT": str(theirs / "context.json")}, project)
    assert named.url == "http://theirs"


def test_the_file_s_token_is_not_sent_to_another_server(project):
    found = context.resolve({"url": "http://elsewhere:8080/"}, {}, project)
    assert (found.url, found.token, found.tenant) == ("http://elsewhere:8080", "", "")


def test_without_any_server_the_failure_says_what_to_do(tmp_path):
    with pytest.raises(Failure) as caught:
        context.resolve({}, {}, tmp_path)
    assert "hubflow dev" in caught.value.hint


@pytest.mark.parametrize("text", ["", "{", "[]", '{"token": "x"}', "null"])
def test_a_damaged_file_is_named(project, text):
    (project / ".hubflow" / "context.json").write_text(text)
    with pytest.raises(Failure, match=r"context\.json"):
        context.resolve({}, {}, project)


def test_a_context_file_can_be_named(project, tmp_path):
    found = context.resolve({}, {"HUBFLOW_CONTEXT": str(project / ".hubflow" / "context.json")}, tmp_path / "elsewhere")
    assert found.token == "hf_t"
    with pytest.raises(Failure, match="missing"):
        context.resolve({}, {"HUBFLOW_CONTEXT": str(tmp_path / "missing")}, tmp_path)


def test_blanks_around_a_token_are_left_out(tmp_path):
    environment = {"HUBFLOW_URL": "http://h", "HUBFLOW_TOKEN": " hf_secret\n"}
    assert context.resolve({}, environment, tmp_path).token == "hf_secret"


@pytest.mark.parametrize("token", ["hf_secret\nX-A: b", "hf_secret x", "hf_secrét", "hf_\udcffsecret"])
def test_a_token_that_is_none_is_refused_and_not_shown(tmp_path, token):
    with pytest.raises(Failure, match="HUBFLOW_TOKEN") as caught:
        context.resolve({}, {"HUBFLOW_URL": "http://h", "HUBFLOW_TOKEN": token}, tmp_path)
    assert "secr" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("tenant", ["acme\n", "тенант", "\udcff"])
def test_a_tenant_that_cannot_be_is_refused(tmp_path, tenant):
    with pytest.raises(Failure, match="tenant"):
        context.resolve({"tenant": tenant}, {"HUBFLOW_URL": "http://h"}, tmp_path)
