"""Both documents between executor and wrapper, as each side really makes them, against the wrapper's published schemas."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from services.executor.core import document
from shared.embedded import S3Address
from shared.objects import open_object_store
from shared.settings import ObjectsSettings
from tests.unit.executor.test_core import claim_of, composed, one

WRAPPER = Path(__file__).parents[2] / "wrapper"
BINARY = WRAPPER / "bin" / "hubflow-wrapper-linux-amd64"


def schema(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((WRAPPER / "schema" / f"{name}.schema.json").read_text())
    return loaded


async def job_document(s3: S3Address, folder: Path, script: str) -> dict[str, Any]:
    """What the executor composes, with a cache and an artifact, and what a runtime fills in."""
    claim = claim_of(one(json.dumps({"script": script, "timeout": "5m", "outputs": ["GREETING"]})))
    settings = ObjectsSettings(
        endpoint=s3.endpoint, access_key=s3.access_key, secret_key=s3.secret_key, region=s3.region, bucket="documents"
    )
    async with open_object_store(settings) as store:
        uploads = [
            (await store.create_upload(f"acme/{name}", 8 << 20, 4, 600.0)).document() for name in ("cache", "artifact")
        ]
        missing = await store.presign_get("acme/missing", 600.0)
    restore = [{"kind": "cache", "name": "deps", "path": "deps", "url": missing, "required": False}]
    common = {"base": "", "when": "success", "required": True, "index_upload": None}
    save = [
        {"kind": "cache", "name": "deps", "paths": ["deps"], "skip_if_restored": True, "upload": uploads[0], **common},
        {
            "kind": "artifact",
            "name": "dist",
            "paths": ["dist"],
            "skip_if_restored": False,
            "upload": uploads[1],
            **common,
        },
    ]
    made = document(claim, claim.model.job("a"), composed(claim), restore=restore, save=save, overflow=None, trace="")
    filled = {"result_path": str(folder / "result.json"), "running_path": "", "output_path": str(folder / "outputs")}
    return {**made, **filled, "message_limit": 524288, "workdir": str(folder)}


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ("mkdir deps dist; echo x > deps/a; echo y > dist/b; echo '[JOB_OUT] GREETING = hello'", "exited"),
        ("exit 7", "exited"),
        ("kill -9 $$", "signaled"),
        ("mkdir deps", "save_failed"),
    ],
)
async def test_what_one_side_writes_the_other_sides_schema_allows(
    s3: S3Address, tmp_path: Path, script: str, outcome: str
) -> None:
    made = await job_document(s3, tmp_path, script)
    jsonschema.validate(made, schema("job"))
    job = tmp_path / "job.json"
    job.write_text(json.dumps(made))
    ended = subprocess.run([BINARY, "run", job], capture_output=True, check=False, timeout=60)
    result = json.loads((tmp_path / "result.json").read_text())
    jsonschema.validate(result, schema("result"))
    assert (result["outcome"], result["attempt"]) == (outcome, made["attempt"]), ended.stderr
    if outcome == "exited" and result["exit_code"] == 0:
        assert result["outputs"] == {"GREETING": "hello"}
        assert [each["error"] for each in result["saved"]] == ["", ""]
