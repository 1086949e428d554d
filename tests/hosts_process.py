"""One of two hosts that agree, differ, wait for the first, and miss each other.

    python hosts_process.py PORT HOST

Prints a line of JSON for what each call gave, or the error it raised.
"""

import json
import sys
import time

from nomic_jax import hosts


def said(call, *arguments, **keywords):
    """Print what a call returns, or the ValueError."""
    try:
        print(json.dumps(call(*arguments, **keywords)), flush=True)
    except ValueError as error:
        print(json.dumps(str(error)), flush=True)


def refuse():
    """Fail as an input that is wrong does."""
    raise ValueError("no such text")


def fails_on_1():
    """Fail on one host alone."""
    if hosts.number() == 1:
        raise ValueError("no such store")
    return "fine"


def main(port, host):
    """Make the calls in the order that the test reads."""
    hosts.start(f"localhost:{port}", 2, host)
    print(json.dumps([hosts.number(), hosts.count(), hosts.is_first()]), flush=True)
    said(hosts.agree, "versions", {"jax": "1", "sizes": {"a": 1}})
    said(hosts.agree, "versions", {"jax": str(host), "sizes": {"a": 1, "b": host}})
    said(hosts.from_first, "report", lambda: {"made by": host})
    said(hosts.from_first, "mining", refuse)
    said(hosts.together, "stores", fails_on_1)
    said(hosts.together, "stores", refuse)
    said(hosts.together, "stores", lambda: host)
    said(hosts.agree, f"place {host}", {})
    if host == 1:
        time.sleep(4)  # late, as one that hangs would be
        return
    began = time.monotonic()
    said(hosts.agree, "stores", {}, seconds=1)
    assert time.monotonic() - began < 20


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
