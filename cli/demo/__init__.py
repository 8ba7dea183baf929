"""`hubflow demo`: a real project is pushed, built, tested, approved and delivered, on real parts. docs/demo.md tells the story.

story.py       what happens, in order, and what must be true of it
repository.py  git: the repository, its hook (post_receive.py) and a server for the jobs
image.py       the jobs' image
browser.py     following the approval link
watching.py    a run on the screen
checks.py      ✔ and ✖
"""

from cli.demo.command import demo

__all__ = ["demo"]
