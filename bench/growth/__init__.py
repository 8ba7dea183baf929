"""How cost grows: with replicas, a long queue, a long past, many tenants; and what a run and an idle process cost.

`__main__` runs the parts and prints; each part is a module with one function `measure`, which opens what it needs by
`place.opened`. Everything is real and durable, as in bench.main_line.
"""
