"""The inputs that a start gives, checked against those that the workflow declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import PydanticCustomError

from shared.errors import UserError
from shared.workflow.faults import nearest, shorten
from shared.workflow.model import Workflow
from shared.workflow.quantities import as_text


def resolve_inputs(model: Workflow, given: Mapping[str, Any]) -> dict[str, str]:
    """Every declared input with its value as text: given, default, or "".

    `given` holds texts, numbers or truth values. Raises UserError (code `bad-input`, status 422; `details["inputs"]` maps
    each wrong input to its fault) for unknown, missing and wrong ones, all at once.
    """
    faults: dict[str, str] = {}
    for name in given:
        if name not in model.inputs:
            meant = nearest(str(name), model.inputs)
            hint = f" (did you mean {meant}?)" if meant else ""
            faults[shorten(name)] = f"the workflow has no such input{hint}"
    values: dict[str, str] = {}
    for name, declared in model.inputs.items():
        value = given.get(name)
        if value is None:
            if declared.required:
                faults[name] = "this input is required"
            values[name] = declared.check(declared.default) if declared.default is not None else ""
            continue
        try:
            values[name] = declared.check(as_text(value))
        except PydanticCustomError as error:
            context = error.context or {}
            expected = f" (expected {context['expected']})" if context.get("expected") else ""
            # the value of a secret belongs into no message
            faults[name] = "not a possible value" if declared.secret else f"{context.get('message', '')}{expected}"
    if faults:
        told = "; ".join(f"{name}: {fault}" for name, fault in faults.items())
        raise UserError(f"The inputs do not fit the workflow: {told}.", code="bad-input", status=422,
                        hint="`hubflow workflow show NAME` lists the inputs.", details={"inputs": faults})  # fmt: skip
    return values
