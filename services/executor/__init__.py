"""Makes containers of attempts that may start, and ends those that must. See README.md."""
