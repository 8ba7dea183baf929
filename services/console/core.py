"""From rows to what people see: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.masking import without_url_passwords
from shared.states import FINAL_RUN_STATES, JobState, Reason, RunState, StageState
from shared.workflow.expressions import cause, render, render_globals

MASK = "***"
ACTIVE_STATES = [state.value for state in RunState if state not in FINAL_RUN_STATES]
_NEVER_STARTED = {
    "reason": "", "message": "", "attempt": 0, "eligible_at": None, "retry_at": None, "ready_at": None,
    "started_at": None, "finished_at": None, "carried_from": None,
}  # fmt: skip
_SUMMARY = (
    "id", "number", "workflow", "version", "state", "reason", "message", "trigger", "retry_of",
    "created_at", "started_at", "finished_at",
)  # fmt: skip


def run_summary(row: Any) -> dict[str, Any]:
    """Whoever may read runs need not be able to clone: passwords in URLs of the trigger are not shown."""
    shown = {name: row[name] for name in _SUMMARY}
    return {**shown, **{name: without_url_passwords(shown[name]) for name in ("trigger", "message")}}


def run_view(row: Any) -> dict[str, Any]:
    """A run's row of `store.runs.tree` as RunView."""
    stages = _stages(row)
    return {
        **run_summary(row),
        "inputs": masked_inputs(row["inputs"], row["declared_inputs"] or {}),
        "concurrency_group": without_url_passwords(row["concurrency_group"]),
        "seq": row["seq"],
        "waiting": _waiting(row),
        "stages": stages,
    }


def masked_inputs(values: Mapping[str, Any], declared: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of a run; those that the workflow calls secret are not shown."""
    return {
        name: MASK if value and (declared.get(name) or {}).get("secret") else value for name, value in values.items()
    }


def is_reached(until: str, state: str, seq: int, since: int) -> bool:
    """Has a run come to what a reader waits for?"""
    if state in FINAL_RUN_STATES:
        return True
    if until == "paused":
        return state == RunState.PAUSED
    return until == "change" and seq > since


def _stages(row: Any) -> list[dict[str, Any]]:
    decisions = row["decisions"] or {}
    if row["stages"] is None:
        return _planned_stages(row["plan"] or {"stages": []}, decisions)
    jobs: dict[str, list[dict[str, Any]]] = {}
    for job in row["jobs"] or []:
        jobs.setdefault(job["stage"], []).append({**job, "allow_failure": job["name"] in row["allowed_failures"]})
    types = row["stage_types"] or []
    return [
        {
            **stage,
            "type": types[index] if index < len(types) else "normal",
            "decision": stage["decision"] or decisions.get(stage["name"]),
            "jobs": jobs.get(stage["name"], []),
        }
        for index, stage in enumerate(row["stages"])
    ]


def _planned_stages(plan: Mapping[str, Any], decisions: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What will be, before the scheduler has taken the run up."""
    return [
        {
            "name": stage["name"], "type": stage["type"], "state": StageState.WAITING, "reason": "", "message": "",
            "decision": decisions.get(stage["name"]), "started_at": None, "paused_at": None, "finished_at": None,
            "jobs": [
                {"name": job["name"], "stage": stage["name"], "state": JobState.WAITING,
                 "allow_failure": job.get("allow_failure", False), **_NEVER_STARTED}
                for job in stage["jobs"]
            ],
        }
        for stage in plan["stages"]
    ]  # fmt: skip


def _waiting(row: Any) -> dict[str, Any] | None:
    if row["state"] in FINAL_RUN_STATES:
        return None
    if row["state"] == RunState.PENDING and row["reason"]:
        return {
            "reason": row["reason"],
            "message": without_url_passwords(row["message"]),
            "position": row["runs_before"],
        }
    for stage in row["stages"] or []:
        if stage["state"] == StageState.PAUSED:
            return {
                "reason": "Decision",
                "message": f"the stage {stage['name']!r} waits for a decision",
                "position": None,
            }
    for job in row["jobs"] or []:
        if job["state"] == JobState.WAITING and (job["eligible_at"] or job["reason"] == Reason.RETRY_BACKOFF):
            return {
                "reason": job["reason"] or Reason.QUOTA,
                "message": job["message"] or f"the job {job['name']!r} waits for its turn",
                "position": row["jobs_before"] if job["eligible_at"] else None,
            }
    if row["state"] == RunState.PENDING:
        return {
            "reason": Reason.CAPACITY, "message": "it has not been taken up yet, or its first container has not started",
            "position": row["runs_before"],
        }  # fmt: skip
    return None


_JOB = (
    "stage", "name", "state", "reason", "message", "attempt", "eligible_at", "retry_at", "ready_at", "started_at",
    "finished_at", "carried_from",
)  # fmt: skip


def job_brief(row: Any | None, stage: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """A job's row, or what will be, before the scheduler has taken the run up. `document`: the job in the workflow file."""
    allowed = {"allow_failure": document.get("allow_failure", False)}
    if row is None:
        return {"name": document["name"], "stage": stage, "state": JobState.WAITING, **allowed, **_NEVER_STARTED}
    return {**{column: row[column] for column in _JOB}, **allowed}


def decision_view(about: Any, stage: str, public_url: str) -> dict[str, Any]:
    """What a person should know before deciding: title, message and facts by name."""
    trigger, git = about["trigger"], about["trigger"].get("git") or {}
    facts = {
        "Run": about["number"],
        "Workflow": f"{about['workflow']} (version {about['version']})",
        "Tenant": about["tenant"],
        "Started by": f"{trigger.get('by', '')} ({trigger.get('type', '')})",
        "Started at": f"{about['created_at']:%Y-%m-%d %H:%M:%S} UTC",
        "Branch": git.get("branch", ""),
        "Tag": git.get("tag", ""),
        "Commit": git.get("commit", ""),
        "Commit message": git.get("message", ""),
    }
    inputs = masked_inputs(about["inputs"], about["declared_inputs"] or {})
    facts |= {f"Input {name}": value for name, value in inputs.items()}
    return {
        "title": f"{about['workflow']} asks for a decision: {stage}",
        "message": _message(about, inputs, public_url),
        "facts": facts,
    }


def _message(about: Any, inputs: Mapping[str, Any], public_url: str) -> str:
    """The stage's own words; references to what is not there (yet) stay as they are written."""
    text = str((about["stage"].get("pause") or {}).get("message") or "")
    context = {
        **cause(about["trigger"]),
        "inputs": inputs, "jobs": about["jobs"] or {},
        "workflow": {"name": about["workflow"], "version": about["version"]},
        "run": {"id": str(about["id"]), "number": about["number"], "url": f"{public_url}/runs/{about['id']}"},
    }  # fmt: skip
    context["env"] = render_globals(about["env"] or {}, context)
    return str(without_url_passwords(render(text, context, keep_missing=True)))
