"""Hubflow beside other engines: the same scenarios, on the same machine, in the same minutes (`make bench-peers`).

`__main__` starts everything and asks each engine in turn; `environment` gives each peer an environment of its own below
build/peers. A peer is a module that runs in that environment: it may import nothing of Hubflow but `driver`.
"""
