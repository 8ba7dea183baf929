"""The kinds of run, and what each must come to, whatever happens meanwhile: the model that the evidence is held against.

Every job first says to the witness that it begins, prints numbered lines, does its work, and says that it ends. The witness is
a file that only grows (plain processes; on an engine its own events are counted instead). What a kind expects follows from its
workflow, its inputs and what people were answered about their decisions and cancels; never from what Hubflow says it did.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ENDED_EARLY = frozenset({"cancelled", "timed_out"})
"""Attempts of these states may have been ended before their first line, and their logs are beginnings."""

_BEGIN = """\
say() { [ -z "$WITNESS" ] || echo "$1 $HUBFLOW_RUN $HUBFLOW_JOB $HUBFLOW_ATTEMPT" >> "$WITNESS"; }
say begin
i=0; while [ $i -lt %d ]; do i=$((i+1)); echo "$HUBFLOW_JOB $HUBFLOW_ATTEMPT $i of %d"; done"""


@dataclass(frozen=True, slots=True)
class JobEnd:
    """What must be true of a job. `attempts`: the states that each attempt may have; None: any number of any kind."""

    attempts: Sequence[frozenset[str]] | None = (frozenset({"succeeded"}),)
    lines: int = 3
    more: str = ""
    """What the log holds after the numbered lines."""
    outputs: Mapping[str, str] = field(default_factory=dict)
    lost: bool = False
    """There may be attempts beside these that were lost: something takes pods away, and the job asks to be tried again."""

    def log(self, job: str, attempt: int) -> str:
        numbered = "".join(f"{job} {attempt} {i} of {self.lines}\n" for i in range(1, self.lines + 1))
        return numbered + self.more


@dataclass(frozen=True, slots=True)
class End:
    """What must be true of a run."""

    states: frozenset[str]
    reasons: frozenset[str] | None = None
    jobs: Mapping[str, JobEnd] = field(default_factory=dict)
    skipped: frozenset[str] = frozenset()
    """Jobs that must not have had an attempt."""
    artifacts: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(job, artifact) -> the text of the one file in it."""


@dataclass(slots=True)
class Asked:
    """What people did about a run, and what they were answered."""

    decision: str = ""
    """"approve" or "cancel": the one that won, by the answers."""
    cancelled: bool = False
    """A cancel was accepted."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of run. `people`: who acts on it meanwhile, see load.py."""

    name: str
    weight: int
    stages: Sequence[Mapping[str, Any]]
    end: Callable[[Mapping[str, str], Asked], End]
    people: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the workflow."""

    def source(self, witness: str) -> str:
        """The workflow file (JSON is YAML)."""
        document = {
            "name": self.name,
            "env": {"WITNESS": witness},
            "inputs": {"X": "x", "SECONDS": "0"},
            **self.more,
            "stages": self.stages,
        }
        return json.dumps(document)

    def inputs(self, rng: random.Random) -> dict[str, str]:
        return {"X": f"{rng.getrandbits(32):08x}", "SECONDS": f"{rng.choice((0, 0, 0.2, 0.5, 1.5)):g}"}


def _job(name: str, *script: str, lines: int = 3, **more: Any) -> dict[str, Any]:
    given = {"X": "${{ inputs.X }}", "SECONDS": "${{ inputs.SECONDS }}", **more.pop("inputs", {})}
    text = "\n".join((_BEGIN % (lines, lines), *script, "say end"))
    return {"name": name, "script": text, "inputs": given, **more}


def _stage(name: str, *jobs: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "jobs": list(jobs), **more}


def _states(*names: str) -> frozenset[str]:
    return frozenset(names)


SUCCEEDED = _states("succeeded")
_FAILED = _states("failed")
_ANY = JobEnd(attempts=None)


def _of(name: str) -> str:
    return f"${{{{ jobs.{name}.outputs.VALUE }}}}"


def _tells(value: str) -> str:
    return f'echo "[JOB_OUT] VALUE = {value}"'


def _told(value: str) -> str:
    return f"[JOB_OUT] VALUE = {value}\n"


# ---------------------------------------------------------------- kinds that succeed


def _fan_end(inputs: Mapping[str, str], _: Asked) -> End:
    jobs = {
        name: JobEnd(outputs={"VALUE": f"{inputs['X']}-{name}"}, more=_told(f"{inputs['X']}-{name}")) for name in "abc"
    }
    total = "/".join(f"{inputs['X']}-{name}" for name in "abc")
    return End(SUCCEEDED, jobs={**jobs, "sum": JobEnd(outputs={"VALUE": total}, more=_told(total))})


FAN = Kind(
    "fan", 6,
    [
        _stage("spread", *(_job(name, 'sleep "$SECONDS"', _tells(f"$X-{name}"), outputs=["VALUE"]) for name in "abc")),
        _stage("join", _job("sum", _tells("$A/$B/$C"), inputs={n.upper(): _of(n) for n in "abc"}, outputs=["VALUE"])),
    ],
    _fan_end,
)  # fmt: skip


def _chain_end(inputs: Mapping[str, str], _: Asked) -> End:
    values = [inputs["X"] + "+" * n for n in range(3)]
    return End(
        SUCCEEDED,
        jobs={f"link{n}": JobEnd(outputs={"VALUE": each}, more=_told(each)) for n, each in enumerate(values)},
    )


CHAIN = Kind(
    "chain", 5,
    [
        _stage(
            "row",
            _job("link0", _tells("$X"), outputs=["VALUE"]),
            *(_job(f"link{n}", 'sleep "$SECONDS"', _tells("$GIVEN+"), inputs={"GIVEN": _of(f"link{n - 1}")},
                   outputs=["VALUE"]) for n in (1, 2)),
            sequencing="serial",
        )
    ],
    _chain_end,
)  # fmt: skip

DIAMOND = Kind(
    "diamond", 5,
    [
        _stage(
            "all", _job("top"), _job("left", 'sleep "$SECONDS"', needs=["top"]), _job("right", needs=["top"]),
            _job("bottom", needs=["left", "right"]),
        )
    ],
    lambda _i, _a: End(SUCCEEDED, jobs={name: JobEnd() for name in ("top", "left", "right", "bottom")}),
)  # fmt: skip

LOUD = Kind(
    "loud", 3,
    [_stage("talk", _job("talker", lines=4000), _job("slow", *['sleep "$SECONDS"; echo a little later'] * 4, lines=50))],
    lambda _i, _a: End(
        SUCCEEDED, jobs={"talker": JobEnd(lines=4000), "slow": JobEnd(lines=50, more="a little later\n" * 4)}
    ),
)  # fmt: skip


def _files_end(inputs: Mapping[str, str], _: Asked) -> End:
    jobs = {
        "make": JobEnd(),
        "take": JobEnd(more=f"found {inputs['X']}\nkept {inputs['X']}\n"),
    }
    return End(SUCCEEDED, jobs=jobs, artifacts={("make", "dist"): inputs["X"] + "\n"})


FILES = Kind(
    "files", 5,
    [
        _stage(
            "make",
            _job(
                "make", "mkdir -p dist kept", 'echo "$X" > dist/x.txt', 'echo "$X" > kept/x.txt',
                artifacts=[{"name": "dist", "paths": ["dist"]}], cache=[{"name": "kept", "paths": ["kept"]}],
            ),
        ),
        _stage(
            "take",
            _job(
                "take", 'echo "found $(cat dist/x.txt)"', 'echo "kept $(cat kept/x.txt)"', fetch=["dist"],
                cache=[{"name": "kept", "paths": ["kept"]}],
            ),
        ),
    ],
    _files_end,
)  # fmt: skip

FLAKY = Kind(
    "flaky", 4,
    [
        _stage(
            "try",
            _job("twice", '[ "$HUBFLOW_ATTEMPT" = 2 ]', retries={"max": 2, "backoff": {"delay": "500ms"}}),
            _job("once"),
        )
    ],
    lambda _i, _a: End(SUCCEEDED, jobs={"twice": JobEnd(attempts=(_FAILED, SUCCEEDED)), "once": JobEnd()}),
)  # fmt: skip

LOCKED = Kind(
    "locked", 2, [_stage("alone", _job("holder", "sleep 0.3"))],
    lambda _i, _a: End(SUCCEEDED, jobs={"holder": JobEnd()}),
    more={"concurrency": {"group": "lock", "limit": 1}},
)  # fmt: skip

PROBE = Kind("probe", 0, [_stage("only", _job("probe"))], lambda _i, _a: End(SUCCEEDED, jobs={"probe": JobEnd()}))
"""Started when a fault strikes; how long it takes is how long the system needed to recover."""

# ---------------------------------------------------------------- kinds that wait for people or for time


def _decided_end(_: Mapping[str, str], asked: Asked) -> End:
    if asked.decision == "approve":
        return End(SUCCEEDED, jobs={"mail": JobEnd(), "deploy": JobEnd()})
    return End(_states("cancelled"), frozenset({"Cancelled"}), jobs={"mail": JobEnd()}, skipped=frozenset({"deploy"}))


def _asking(name: str, weight: int, people: str, end: Callable[[Mapping[str, str], Asked], End], **pause: Any) -> Kind:
    stages = [
        _stage("ask", _job("mail", 'sleep "$SECONDS"'), type="pause", pause=pause),
        _stage("deploy", _job("deploy")),
    ]
    return Kind(name, weight, stages, end, people)


APPROVED = _asking("approved", 4, "approve", _decided_end)
REFUSED = _asking("refused", 2, "refuse", _decided_end)
CONTESTED = _asking("contested", 3, "contest", _decided_end)
SILENT_YES = _asking(
    "silent-yes", 2, "", lambda _i, _a: End(SUCCEEDED, jobs={"mail": JobEnd(), "deploy": JobEnd()}),
    timeout="1s", on_timeout="approve",
)  # fmt: skip
SILENT_NO = _asking(
    "silent-no", 2, "",
    lambda _i, _a: End(
        _FAILED, frozenset({"DecisionTimeout"}), jobs={"mail": JobEnd()}, skipped=frozenset({"deploy"})
    ),
    timeout="1s", on_timeout="fail",
)  # fmt: skip
TOO_LATE = Kind(
    "too-late", 2,
    [_stage("wait", _job("sleeper", "exec sleep 600", timeout="1s", grace="2s"))],
    lambda _i, _a: End(
        _FAILED, frozenset({"JobTimeout"}), jobs={"sleeper": JobEnd(attempts=(_states("timed_out", "failed", "cancelled"),))}
    ),
)  # fmt: skip
"""The wrapper sees to the time limit; if the scheduler's clock is ahead, it may be quicker and stop the attempt."""

# ---------------------------------------------------------------- kinds that must fail, or are ended

FAILING = Kind(
    "failing", 4,
    [
        _stage("break", _job("broken", 'sleep "$SECONDS"', "exit 3"), _job("sound")),
        _stage("after", _job("never")),
        _stage("rescue", _job("rescue"), when="run.failed"),
    ],
    lambda _i, _a: End(
        _FAILED, frozenset({"ExitCode"}), skipped=frozenset({"never"}),
        jobs={"broken": JobEnd(attempts=(_FAILED,)), "sound": JobEnd(), "rescue": JobEnd()},
    ),
)  # fmt: skip
SAYS_NO = Kind(
    "says-no", 2, [_stage("check", _job("check", "echo '[JOB_OUT] JOB_RESULT = false'"))],
    lambda _i, _a: End(
        _FAILED, frozenset({"JobResultFalse"}),
        jobs={"check": JobEnd(attempts=(_FAILED,), more="[JOB_OUT] JOB_RESULT = false\n")},
    ),
)  # fmt: skip
LONG = Kind(
    "long", 4,
    [_stage("wait", _job("sleeper", "exec sleep 600", grace="2s"), _job("short")), _stage("after", _job("never"))],
    lambda _i, _a: End(
        _states("cancelled"), frozenset({"Cancelled"}), skipped=frozenset({"never"}),
        jobs={"sleeper": JobEnd(attempts=None), "short": _ANY},
    ),
    "cancel",
)  # fmt: skip


def _racing_end(_: Mapping[str, str], asked: Asked) -> End:
    if not asked.cancelled:
        return End(SUCCEEDED, jobs={name: JobEnd() for name in ("one", "two", "three")})
    return End(_states("cancelled", "succeeded"), jobs=dict.fromkeys(("one", "two", "three"), _ANY))


RACING = Kind(
    "racing", 4,
    [_stage("run", _job("one", 'sleep "$SECONDS"'), _job("two")), _stage("on", _job("three"))],
    _racing_end, "cancel",
)  # fmt: skip
REMOVED = Kind(
    "removed", 2, [_stage("wait", _job("victim", "exec sleep 600", grace="1s"))],
    lambda _i, _a: End(
        _FAILED, frozenset({"ContainerGone"}), jobs={"victim": JobEnd(attempts=(_states("lost"),))}
    ),
    "remove",
)  # fmt: skip
REPLACED = Kind(
    "replaced", 2,
    [
        _stage(
            "wait",
            _job("victim", '[ "$HUBFLOW_ATTEMPT" = 2 ] || exec sleep 600', grace="1s",
                 retries={"max": 1, "backoff": {"delay": "500ms"}}),
        )
    ],
    lambda _i, _a: End(SUCCEEDED, jobs={"victim": JobEnd(attempts=(_states("lost"), SUCCEEDED))}),
    "remove",
)  # fmt: skip

KINDS = (
    FAN, CHAIN, DIAMOND, LOUD, FILES, FLAKY, LOCKED, PROBE, APPROVED, REFUSED, CONTESTED, SILENT_YES, SILENT_NO, TOO_LATE,
    FAILING, SAYS_NO, LONG, RACING, REMOVED, REPLACED,
)  # fmt: skip

# ---------------------------------------------------------------- simulated nodes: an empty log, and a good end at once


_SIMULATED = JobEnd(lines=0, lost=True)


def _simulated(name: str, **more: Any) -> dict[str, Any]:
    return _job(name, retries={"max": 5, "backoff": {"delay": "500ms"}}, **more)


def _simulated_end(*jobs: str) -> Callable[[Mapping[str, str], Asked], End]:
    return lambda _i, _a: End(SUCCEEDED, jobs=dict.fromkeys(jobs, _SIMULATED))


def _simulated_decided(_: Mapping[str, str], asked: Asked) -> End:
    if asked.decision == "approve":
        return End(SUCCEEDED, jobs=dict.fromkeys(("mail", "deploy"), _SIMULATED))
    return End(_states("cancelled"), frozenset({"Cancelled"}), jobs={"mail": _SIMULATED}, skipped=frozenset({"deploy"}))


def _simulated_cancelled(_: Mapping[str, str], asked: Asked) -> End:
    if not asked.cancelled:
        return End(SUCCEEDED, jobs=dict.fromkeys("abc", _SIMULATED))
    return End(_states("cancelled", "succeeded"), jobs=dict.fromkeys("abc", JobEnd(None, lines=0)))


_ASK = [_stage("ask", _simulated("mail"), type="pause", pause={}), _stage("deploy", _simulated("deploy"))]
SIMULATED_KINDS = (
    Kind("probe", 12, [_stage("only", _simulated("probe"))], _simulated_end("probe")),
    Kind(
        "fan", 3, [_stage("spread", *(_simulated(name) for name in "abc")), _stage("join", _simulated("sum"))],
        _simulated_end("a", "b", "c", "sum"),
    ),
    Kind("chain", 3, [_stage("row", *(_simulated(name) for name in "abc"), sequencing="serial")], _simulated_end(*"abc")),
    Kind("approved", 2, _ASK, _simulated_decided, "approve"),
    Kind("contested", 1, _ASK, _simulated_decided, "contest"),
    Kind("snatched", 2, [_stage("only", _simulated("victim"))], _simulated_end("victim"), "snatch"),
    Kind(
        "racing", 2, [_stage("run", _simulated("a"), _simulated("b")), _stage("on", _simulated("c"))],
        _simulated_cancelled, "cancel",
    ),
)  # fmt: skip
