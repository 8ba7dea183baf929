"""Where containers run: see protocol.py."""
