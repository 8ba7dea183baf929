"""Waypoint, a small URL shortener on the standard library alone."""

import json
import pkgutil


def build_info() -> dict[str, str]:
    """{"version", "commit"} as stamped by tools/build.py; a checkout that nobody built says so."""
    try:
        stamp = pkgutil.get_data("waypoint", "build.json")
    except FileNotFoundError:
        stamp = None
    return json.loads(stamp) if stamp else {"version": "0.0.0+checkout", "commit": ""}
