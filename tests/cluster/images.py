"""Images that tests put on the node: the command wrapper's, and two small ones for jobs."""

from __future__ import annotations

from pathlib import Path

from tests.servers.images import BUSYBOX, File, Image, base_layer

WRAPPER_IMAGE = "hubflow.test/wrapper:1"
JOB_IMAGE = "hubflow.test/job:1"
BARE_IMAGE = "hubflow.test/bare:1"
"""One program and nothing else, no /tmp, no /etc, and a user that owns nothing."""


def wrapper_image(binary: Path, name: str = WRAPPER_IMAGE) -> Image:
    """As `Dockerfile` makes it: the program and its other name, for a user without rights."""
    layer = [("hubflow-wrapper", File(binary.read_bytes())), ("thub", File(link="hubflow-wrapper"))]
    return Image(name, [layer], entrypoint=["/hubflow-wrapper"], user="65532:65532")


def job_images() -> list[Image]:
    """A shell with the usual tools, and the bare one."""
    env = ["PATH=/bin", "FROM_IMAGE=yes"]
    bare = [("bin", File()), ("bin/sh", File(BUSYBOX.read_bytes()))]
    return [
        Image(JOB_IMAGE, [base_layer()], cmd=["/bin/echo", "from the image"], env=env),
        Image(BARE_IMAGE, [bare], env=["PATH=/bin"], user="4711:4712"),
    ]
