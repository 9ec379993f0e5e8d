"""How the child locks itself in before it reads a hostile byte (design D4). Runs in the child only."""

from __future__ import annotations

import os
import resource
import signal

from pluginsvc.rootfs import syscalls

CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_MKNOD, CAP_SETFCAP = 0, 1, 3, 4, 27, 31
KEPT = (CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_MKNOD, CAP_SETFCAP)
"""What unpacking a rootfs takes: owners, modes, set-id bits, device nodes and file capabilities of others."""

MAX_MEMORY = 1 << 30
"""Address space in bytes: a zstd window of 128 MiB, and the tables of far more than 60 000 files."""

MAX_FILES = 8192
"""Open files: a path of 4096 bytes has at most 2048 directories, each held open once by two walks."""


def fork_into_namespaces() -> None:
    """Return in a new process that is alone in its pid, network and ipc namespaces.

    The calling process waits for it, does nothing else, and ends with its exit status.

    Raises:
        OSError: the kernel refused; EPERM when the daemon lacks CAP_SYS_ADMIN.
    """
    syscalls.unshare(syscalls.CLONE_NEWPID | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC)
    alive, held = os.pipe()
    pid = os.fork()
    if pid:
        # every descriptor but the one that says we live, or pipes would not end when their user does
        os.closerange(0, held)
        os.closerange(held + 1, os.sysconf("SC_OPEN_MAX"))
        _, status = os.waitpid(pid, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    os.close(held)
    syscalls.die_with_parent(signal.SIGKILL)
    os.set_blocking(alive, False)
    try:
        os.read(alive, 1)
    except BlockingIOError:
        os.close(alive)
    else:
        # end of file: our parent ended before we asked to die with it
        os._exit(1)


def lock_in(staging: int) -> int:
    """Make the directory ``staging`` the whole file system of this process and drop what it does not need.

    Args:
        staging: descriptor of the directory, opened before the mount namespace was left; it is closed, because
            ``..`` leads out of it.

    Returns:
        A descriptor of the new root.

    Raises:
        OSError: the kernel refused a step.
    """
    os.umask(0)
    os.fchdir(staging)
    os.close(staging)
    # the working directory follows into the new namespace, a descriptor would not
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, b"/", syscalls.MS_REC | syscalls.MS_PRIVATE)
    # any directory that surely exists would do: in this namespace nobody looks at /proc any more
    syscalls.mount(b".", b"/proc", syscalls.MS_BIND)
    os.chdir("/proc")
    quiet = syscalls.MS_NODEV | syscalls.MS_NOSUID | syscalls.MS_NOEXEC
    syscalls.mount(None, b".", syscalls.MS_REMOUNT | syscalls.MS_BIND | quiet)
    # pivot_root(2): with both names the same, the old root ends up on top of the new one and is taken off there
    syscalls.pivot_root(b".", b".")
    syscalls.umount2(b".", syscalls.MNT_DETACH)
    os.chdir("/")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for limit, wanted in ((resource.RLIMIT_AS, MAX_MEMORY), (resource.RLIMIT_NOFILE, MAX_FILES)):
        hard = resource.getrlimit(limit)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(limit, (value, value))
    syscalls.no_new_privileges()
    syscalls.keep_capabilities(KEPT)
    return os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
