"""Every state and every reason, once.

The arrows between states are the scheduler's (`services/scheduler/arrows.py`); the SQL checks and the diagram in
`docs/states.md` are tested against this file, and `docs/reasons.md` is made from it (`python -m cli.reasons_reference`).
"""

from __future__ import annotations

import enum


class RunState(enum.StrEnum):
    PENDING = "pending"
    """Created; quota, a concurrency group or a full cluster holds it."""
    RUNNING = "running"
    """Its first container has left the cluster's own pending state."""
    PAUSED = "paused"
    """A pause stage waits for a decision; holds no quota of jobs."""
    CANCELLING = "cancelling"
    """Told to end; containers are being stopped."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"

    @property
    def final(self) -> bool:
        return self in FINAL_RUN_STATES


class StageState(enum.StrEnum):
    WAITING = "waiting"
    """An earlier stage is not over."""
    RUNNING = "running"
    PAUSED = "paused"
    """Its jobs are over; a decision is awaited."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    SKIPPED = "skipped"

    @property
    def final(self) -> bool:
        return self in FINAL_STAGE_STATES


class JobState(enum.StrEnum):
    WAITING = "waiting"
    """Needs, an earlier stage, quota, or a retry's delay hold it."""
    READY = "ready"
    """Admitted: the executor has been told to start its attempt."""
    SUBMITTED = "submitted"
    """The runtime has accepted the container."""
    RUNNING = "running"
    """The container's first process has started."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    LOST = "lost"
    """The container vanished without an outcome."""
    SKIPPED = "skipped"
    """Its condition was false, or an earlier failure made it pointless."""

    @property
    def final(self) -> bool:
        return self in FINAL_JOB_STATES

    @property
    def active(self) -> bool:
        """Holds quota of jobs, cpu and memory."""
        return self in ACTIVE_JOB_STATES


FINAL_RUN_STATES = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.TIMED_OUT})
FINAL_STAGE_STATES = frozenset(
    {StageState.SUCCEEDED, StageState.FAILED, StageState.CANCELLED, StageState.TIMED_OUT, StageState.SKIPPED}
)
ACTIVE_JOB_STATES = frozenset({JobState.READY, JobState.SUBMITTED, JobState.RUNNING})
FINAL_JOB_STATES = frozenset(JobState) - ACTIVE_JOB_STATES - {JobState.WAITING}


class Reason(enum.StrEnum):
    """Why something is in its final state (or still waits): stable, for dashboards and retry rules."""

    # the user's code
    EXIT_CODE = "ExitCode"
    """The process ended with a status other than 0."""
    SIGNAL = "Signal"
    """The process was ended by a signal that Hubflow did not send."""
    JOB_RESULT_FALSE = "JobResultFalse"
    """It ended with 0 but printed the output JOB_RESULT = false."""
    OOM_KILLED = "OOMKilled"
    """It used more memory than its limit."""
    OUTPUT_TOO_LARGE = "OutputTooLarge"
    """An output is over the limit; the message names key, size and limit."""
    # starting
    IMAGE_PULL = "ImagePull"
    """The image is unknown, or the registry refused it."""
    START_FAILED = "StartFailed"
    """The command is missing, not executable, for another architecture, or its directory does not exist."""
    PENDING_TIMEOUT = "PendingTimeout"
    """It did not start within its pending time limit."""
    BAD_INPUT = "BadInput"
    """An input names an output, secret or variable that does not exist."""
    UNSUPPORTED = "Unsupported"
    """The runtime here cannot do what the job asks for."""
    INIT_FAILED = "InitFailed"
    """What prepares the container (bringing the command wrapper) failed."""
    # caches and artifacts
    RESTORE_FAILED = "RestoreFailed"
    """A cache or artifact that the job needs could not be fetched or unpacked."""
    SAVE_FAILED = "SaveFailed"
    """An artifact could not be packed or uploaded."""
    WRAPPER_FAILED = "WrapperFailed"
    """CommandWrapper itself failed; the message names the phase."""
    # time
    JOB_TIMEOUT = "JobTimeout"
    """It ran longer than its `timeout`."""
    RUN_TIMEOUT = "RunTimeout"
    """The run took longer than its `timeout`, pauses not counted."""
    DECISION_TIMEOUT = "DecisionTimeout"
    """Nobody decided about the pause stage in time."""
    # the place where it ran
    NODE_LOST = "NodeLost"
    """Its node does not answer any more, and nobody knows how the job ended."""
    EVICTED = "Evicted"
    """The cluster has ended it to make room, or because its node goes."""
    CONTAINER_GONE = "ContainerGone"
    """The container was removed before its outcome was known."""
    # people and rules
    CANCELLED = "Cancelled"
    """Somebody cancelled the run, or rejected it at a pause; the message says who."""
    SUPERSEDED = "Superseded"
    """A newer run of the same concurrency group took its place."""
    STAGE_FAILED = "StageFailed"
    """A stage of the run, or an earlier job of the stage, failed."""
    CONDITION_FALSE = "ConditionFalse"
    """Its `when` does not hold."""
    CONDITION_ERROR = "ConditionError"
    """The `when` expression could not be evaluated; the message says where."""
    CARRIED_OVER = "CarriedOver"
    """It succeeded in the run that this one retries, and was not run again."""
    # waiting
    QUOTA = "Quota"
    """The tenant's quota is used up; the message says by how much and how many wait before it."""
    CAPACITY = "Capacity"
    """The installation as a whole is full; or the run has not been taken up yet, or its first container has not started."""
    CONCURRENCY = "Concurrency"
    """Another run of the same concurrency group is active; the message names it."""
    RETRY_BACKOFF = "RetryBackoff"
    """Waits before its next attempt."""


INFRASTRUCTURE_REASONS = frozenset(
    {
        Reason.NODE_LOST,
        Reason.EVICTED,
        Reason.CONTAINER_GONE,
        Reason.INIT_FAILED,
        Reason.WRAPPER_FAILED,
        Reason.RESTORE_FAILED,
    }
)
"""Failures that are not the user's; before the user's code has started they are retried without using up its retries."""
