"""Becomes another program, after preparing the process for it: `python -I -S launcher.py [options] -- PROGRAM ARGUMENT...`

A file of its own, standard library only, because it runs between fork and exec in a fresh interpreter (20 ms): code in
`preexec_fn` could dead-lock in a process with threads.

  --die-with-parent SIGNAL   the kernel sends SIGNAL when the process that started us is gone, however it went
  --not-root                 root becomes another user inside a user namespace: PostgreSQL refuses to run as root, but this
                             way it keeps root's access to the files, so that nothing has to be chowned or opened up.
                             Where namespaces are forbidden, the user `nobody` takes over, and DIRECTORY is given to it
  --own DIRECTORY            what --not-root hands over in that case (may be repeated)
  --oom-first                under memory pressure this goes before its parent
"""

from __future__ import annotations

import argparse
import ctypes
import os
import pwd
import sys
from collections.abc import Sequence
from pathlib import Path

_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1
_MAPPED_ID = 1000


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="launcher")
    parser.add_argument("--die-with-parent", type=int, default=0)
    parser.add_argument("--parent", type=int, default=0)
    parser.add_argument("--not-root", action="store_true")
    parser.add_argument("--own", action="append", default=[])
    parser.add_argument("--oom-first", action="store_true")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    if options.oom_first:
        _prefer_for_oom()
    if options.not_root and os.geteuid() == 0 and not _enter_user_namespace():
        _become_nobody([Path(folder) for folder in options.own])
    if options.die_with_parent:
        # After the change of user: the kernel forgets the wish when credentials change.
        _libc().prctl(_PR_SET_PDEATHSIG, options.die_with_parent, 0, 0, 0)
        if options.parent and os.getppid() != options.parent:
            sys.exit("launcher: the process that started this one is gone")
    try:
        os.execv(options.command[0], options.command)  # noqa: S606 -- becoming it is the purpose
    except OSError as error:
        sys.exit(f"launcher: cannot run {options.command[0]}: {error.strerror}")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _prefer_for_oom() -> None:
    try:
        Path("/proc/self/oom_score_adj").write_text("500")
    except OSError:
        return  # a wish, not a need


def _enter_user_namespace() -> bool:
    if _libc().unshare(_CLONE_NEWUSER) != 0:
        return False
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{_MAPPED_ID} 0 1\n")
    Path("/proc/self/gid_map").write_text(f"{_MAPPED_ID} 0 1\n")
    return True


def _become_nobody(folders: Sequence[Path]) -> None:
    user = pwd.getpwnam("nobody")
    for folder in folders:
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)


if __name__ == "__main__":
    main(sys.argv[1:])
