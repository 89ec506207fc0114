"""Where faults are made: a camera behind a cable of its own, a disk of 1 MB, a clock that can be stepped."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CLOCK_FILE = "GRMP_FIELD_CLOCK"

# Adds the seconds written in a file to the wall clock, and leaves the monotonic clock alone: as a step by
# NTP, but for one process. The file is mapped, so that asking for the time costs no call.
_SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static const char *place;
static long long step(void) {
    char text[32] = {0};
    if (!place) {
        const char *name = getenv("GRMP_FIELD_CLOCK");
        int file = name ? open(name, O_RDONLY) : -1;
        void *found = file < 0 ? MAP_FAILED : mmap(0, 4096, PROT_READ, MAP_SHARED, file, 0);
        if (file >= 0) close(file);
        if (found == MAP_FAILED) return 0;
        place = found;
    }
    for (int i = 0; i < 20; i++) text[i] = place[i];
    return atoll(text);
}
int clock_gettime(clockid_t id, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(id, at);
    if (!status && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) at->tv_sec += step();
    return status;
}
int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
    int status = real(at, zone);
    if (!status && at) at->tv_sec += step();
    return status;
}
time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


def clock_environment(folder: Path) -> dict[str, str]:
    """Environment of a process whose wall clock follows the file named in CLOCK_FILE; empty: no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return {}
    (folder / "shim.c").write_text(_SHIM)
    library, place = folder / "shim.so", folder / "clock"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "shim.c", "-ldl"], check=True)
    place.write_text("0" * 20)
    return {"LD_PRELOAD": str(library), CLOCK_FILE: str(place)}


def set_clock(seconds: int) -> None:
    """Step this process's wall clock to so many seconds from the true one."""
    with Path(os.environ[CLOCK_FILE]).open("r+b") as stream:  # in place: it is mapped
        stream.write(f"{seconds:020d}".encode())


@dataclass(frozen=True)
class Place:
    """A network namespace joined to this one by a cable."""

    name: str
    address: str  # of what runs in it
    link: str  # this side's end of the cable

    def down(self) -> None:
        """Pull the cable."""
        subprocess.run(["ip", "link", "set", self.link, "down"], check=True)

    def up(self) -> None:
        """Put it back."""
        subprocess.run(["ip", "link", "set", self.link, "up"], check=True)


@contextlib.contextmanager
def namespace() -> Iterator[Place | None]:
    """A place for a server behind a cable that can be pulled; None where that is not allowed."""
    number = os.getpid() % 200
    place = Place(f"grmp{number}", f"10.213.{number}.2", f"grmp{number}a")
    inside = f"grmp{number}b"
    commands = [
        f"ip netns add {place.name}",
        f"ip link add {place.link} type veth peer name {inside} netns {place.name}",
        f"ip addr add 10.213.{number}.1/24 dev {place.link}",
        f"ip link set {place.link} up",
        f"ip -n {place.name} addr add {place.address}/24 dev {inside}",
        f"ip -n {place.name} link set {inside} up",
        f"ip -n {place.name} link set lo up",
    ]
    if os.geteuid() != 0 or shutil.which("ip") is None:
        yield None
        return
    try:
        made = all(
            subprocess.run(command.split(), capture_output=True).returncode == 0 for command in commands
        )
        yield place if made else None
    finally:
        subprocess.run(["ip", "link", "del", place.link], capture_output=True)
        subprocess.run(["ip", "netns", "del", place.name], capture_output=True)


@contextlib.contextmanager
def small_disk(size: str = "1m") -> Iterator[Path | None]:
    """A file system of its own that is soon full; None where none can be mounted."""
    with tempfile.TemporaryDirectory() as folder:
        if (
            os.geteuid() != 0
            or subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True
            ).returncode
        ):
            yield None
            return
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)
