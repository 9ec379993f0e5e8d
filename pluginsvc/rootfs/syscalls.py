"""System calls that Python 3.11 has no function for, by way of the C library (so no numbers per architecture)."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable

MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_SHARED = 0x100000
MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8
CLONE_NEWNS = 0x20000
CLONE_NEWIPC = 0x8000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


def _check(outcome: int, call: str) -> None:
    if outcome != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def mount(source: bytes | None, target: bytes, flags: int) -> None:
    """Bind, remount or change propagation; the rest of what the call can do is not needed."""
    _check(_libc.mount(source, target, None, flags, None), "mount")


def umount2(target: bytes, flags: int) -> None:
    """Take off what is mounted at ``target`` with umount2."""
    _check(_libc.umount2(target, flags), "umount2")


def pivot_root(new_root: bytes, put_old: bytes) -> None:
    """Make ``new_root`` the root and put the old one at ``put_old`` with pivot_root."""
    _check(_libc.pivot_root(new_root, put_old), "pivot_root")


def unshare(flags: int) -> None:
    """Leave namespaces for new ones, given ``CLONE_NEW…`` flags with unshare."""
    _check(_libc.unshare(flags), "unshare")


def die_with_parent(signal: int) -> None:
    """Have the kernel send ``signal`` to this process when the thread that forked it ends (PR_SET_PDEATHSIG)."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal, 0, 0, 0), "prctl PR_SET_PDEATHSIG")


def no_new_privileges() -> None:
    """Let no later exec gain privileges (PR_SET_NO_NEW_PRIVS)."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl PR_SET_NO_NEW_PRIVS")


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityHalf(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def keep_capabilities(kept: Iterable[int]) -> None:
    """Give up every capability but ``kept``, in all sets including the bounding set (capabilities(7)).

    Args:
        kept: numbers of capabilities, as in linux/capability.h.
    """
    mask = sum(1 << number for number in kept)
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "prctl PR_CAP_AMBIENT_CLEAR_ALL")
    for number in range(64):
        if mask >> number & 1:
            continue
        try:
            _check(_libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0), "prctl PR_CAPBSET_DROP")
        except OSError as exc:
            # from the first number on that the kernel does not know
            if exc.errno == errno.EINVAL:
                break
            raise
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    halves = (_CapabilityHalf * 2)(_CapabilityHalf(low, low, 0), _CapabilityHalf(high, high, 0))
    _check(_libc.capset(ctypes.byref(header), halves), "capset")
