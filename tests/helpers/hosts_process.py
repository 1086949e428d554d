"""One of two hosts that agree, differ, wait for the first, and miss each other.

    python hosts_process.py PORT HOST

Prints a line of JSON for what each call gave, or the error it raised.
"""

import json
import sys
import time

from nomic_jax.distributed import hosts


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
    said(hosts.assert_equal_across_hosts, "versions", {"jax": "1", "sizes": {"a": 1}})
    said(
        hosts.assert_equal_across_hosts,
        "versions",
        {"jax": str(host), "sizes": {"a": 1, "b": host}},
    )
    said(hosts.broadcast_from_host0, "report", lambda: {"made by": host})
    said(hosts.broadcast_from_host0, "mining", refuse)
    said(hosts.run_on_all_hosts, "stores", fails_on_1)
    said(hosts.run_on_all_hosts, "stores", refuse)
    said(hosts.run_on_all_hosts, "stores", lambda: host)
    said(hosts.assert_equal_across_hosts, f"place {host}", {})
    if host == 1:
        time.sleep(4)  # late, as one that hangs would be
        return
    began = time.monotonic()
    said(hosts.assert_equal_across_hosts, "stores", {}, seconds=1)
    assert time.monotonic() - began < 20


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
