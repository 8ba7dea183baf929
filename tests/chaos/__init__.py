"""`make chaos`: a storm of faults over a whole system of separate processes, and what is left to see afterwards.

    storm.py     the faults, in an order drawn from the seed
    load.py      the runs that go on meanwhile, with decisions and cancels
    workflows.py the kinds of run, and what each must come to: the model
    place.py     the system that is put to the test: real servers, two replicas of each service, proxies between them
    proxy.py     a TCP proxy that cuts, delays and swallows
    ears.py      what hears from outside: a subscriber on the broker, a receiver of webhooks, the engine's own events
    evidence.py  what is checked once it is quiet again, from outside only
    report.py    the table, and build/chaos.json

Nothing here reads a counter of the code under test. `python -m tests.chaos --help` tells how to start one.
"""
