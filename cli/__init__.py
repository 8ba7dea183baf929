"""The `hubflow` command. `main.py` is its door; each group of commands is a module that is imported only when it is used."""
