"""A folder that several hosts share: is it the same one, and is a file there yet?

A network file system may say for a while that a file is not there which another host
has written.
"""

import time
import uuid

from nomic_jax import hosts
from nomic_jax.storage import exists, join, read_bytes, write_bytes

SEEN_SECONDS = 90.0  # until a shared file system shows what another host wrote
TOKEN = "hosts.token"  # what the first host writes, for the others to find


def check_shared(folder: str) -> None:
    """Refuse a folder that is not the same one on all hosts.

    Raises:
        ValueError: on every host, with those that do not see what the first one wrote.
    """
    if hosts.count() == 1:
        return
    place = join(folder, TOKEN)

    def work() -> str:
        token = uuid.uuid4().hex
        write_bytes(place, token.encode())
        return token

    token = hosts.from_first("shared folder", work)

    def look() -> None:
        deadline = time.monotonic() + SEEN_SECONDS
        while not exists(place) or read_bytes(place).decode() != token:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"{place} is not what the first host wrote: all hosts need the "
                    "same --out, on a file system they share or at a URL"
                )
            time.sleep(1)

    hosts.together("shared folder", look)


def wait_to_see(place: str) -> None:
    """Wait until this host sees a file that the first one has written.

    Raises:
        ValueError: it does not appear.
    """
    deadline = time.monotonic() + SEEN_SECONDS
    while not exists(place):
        if time.monotonic() > deadline:
            raise ValueError(f"host {hosts.number()} does not see {place}")
        time.sleep(1)
