"""Watches the runtime and tells what becomes of each attempt. See README.md."""
