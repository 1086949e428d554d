"""Several hosts in one run: how they find each other, agree, and wait for the first.

JAX's multi-controller runtime is the engine: every host runs the same program. Messages
go through its key-value service, not over the devices, so that hosts whose packages
differ can still report it, and one that never comes is named after a while. Hosts share
a folder; a network file system may not show for a while a file that another host has
written, so hosts wait for it.
"""

import importlib.metadata
import itertools
import json
import platform
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import jax
from jax._src import distributed

from nomic_jax.config import differing_fields
from nomic_jax.storage import exists, join, read_bytes, write_bytes

HEARTBEAT_SECONDS = 25  # without a sign of a host, after which JAX ends the others
AGREE_SECONDS = 300.0  # for all hosts to come to the same place
POLL_SECONDS = 5.0  # between looks at Ctrl-C while a host waits
PACKAGES = (
    *("nomic-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"),
    *("libtpu", "jax-cuda13-plugin", "jax-cuda13-pjrt"),
)
Result = TypeVar("Result")
_calls = itertools.count()  # the same on all hosts, which make the same calls


def start(coordinator: str = "", hosts: int = 0, host: int = -1) -> None:
    """Join the hosts of a run; on one machine alone this does nothing.

    Without arguments, Cloud TPU, GKE, SLURM and Open MPI are found from their
    environment, as `jax.distributed.initialize` does. To be called before anything is
    computed.

    Args:
        coordinator: `ADDRESS:PORT` of the first host, any free port.
        hosts: how many there are; 1: this one alone, whatever the environment says.
        host: this one's number, from 0.

    A host that never comes ends the others after five minutes, with status 134 and
    JAX's own message.

    Raises:
        ValueError: only some of the arguments are given, or they do not fit.
    """
    if hosts == 1 and not coordinator:
        return
    given = bool(coordinator), hosts > 0, host >= 0
    if any(given) and not all(given):
        raise ValueError(
            f"coordinator={coordinator!r}, hosts={hosts}, host={host}: give all three "
            "(ADDRESS:PORT of the first host, their number, this one's from 0), or "
            "none where Cloud TPU, GKE, SLURM or Open MPI says them"
        )
    if all(given) and not (host < hosts and coordinator.rpartition(":")[2].isdecimal()):
        raise ValueError(
            f"coordinator={coordinator!r}, hosts={hosts}, host={host}: the first is "
            "ADDRESS:PORT, and hosts are numbered from 0"
        )
    if jax.config.values["jax_platforms"] == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    where: dict[str, Any] = {}
    if all(given):
        where = {
            "coordinator_address": coordinator,
            "num_processes": hosts,
            "process_id": host,
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(
            **where,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except ValueError as error:
        # So JAX says that no environment it knows is there: this machine is alone.
        if "coordinator_address" not in str(error):
            raise


def count() -> int:
    """Return the number of hosts, without waking the devices."""
    return distributed.global_state.num_processes or 1


def number() -> int:
    """Return this host's number, from 0."""
    return distributed.global_state.process_id or 0


def is_first() -> bool:
    """Say whether this host is the one that writes what all share."""
    return number() == 0


def assert_equal_across_hosts(
    what: str, facts: Mapping[str, Any], seconds: float = AGREE_SECONDS
) -> None:
    """Refuse to go on where a host differs from the first one.

    All hosts call it, in the same order. None of their devices takes part.

    Args:
        what: they are facts about.
        facts: plain values; nested mappings are compared field by field.
        seconds: to wait for all hosts.

    Raises:
        ValueError: on every host, with the hosts that differ, or did not come, and the
            fields.
    """
    if count() == 1:
        return
    said = _told(what, dict(facts), seconds)
    problems = []
    for host in sorted(said):
        words = f"{{}} is {{!r}} on host 0 and {{!r}} on host {host}"
        problems += differing_fields(said[0], said[host], words=words)
    if problems:
        raise ValueError(
            f"{what}: {'; '.join(problems)}; make them equal, then start all hosts "
            "again"
        )


def run_on_all_hosts(what: str, work: Callable[[], Result]) -> Result:
    """Do something on every host; where it fails on one, fail on all, with the reason.

    All hosts call it, in the same order.

    Args:
        what: is done.
        work: of this host.

    Raises:
        ValueError: `work` raised it here or on another host, which is named.
    """
    if count() == 1:
        return work()
    result, problem = None, ""
    try:
        result = work()
    except ValueError as error:
        problem = str(error)
    except Exception as error:
        _told(what, f"{type(error).__name__}: {error}", AGREE_SECONDS)
        raise
    said = _told(what, problem, AGREE_SECONDS)
    if problem and len(set(said.values())) == 1:
        raise ValueError(problem)
    problems = [f"host {host}: {said[host]}" for host in sorted(said) if said[host]]
    if problems:
        raise ValueError(f"{what}: {'; '.join(problems)}")
    return cast(Result, result)


def broadcast_from_host0(what: str, work: Callable[[], Result]) -> Result:
    """Let the first host do something and give all hosts its result.

    All hosts call it, in the same order; the others wait as long as it takes. If the
    first one dies meanwhile, JAX ends them.

    Args:
        what: is done.
        work: returns what JSON can hold.

    Raises:
        ValueError: on every host, where `work` raised it on the first.
        RuntimeError: on the others, where the first one failed otherwise.
    """
    if count() == 1:
        return work()
    client, key = _client(), f"nomic_jax/{next(_calls)}"
    if is_first():
        try:
            answer: dict[str, Any] = {"result": work()}
        except Exception as error:
            kind = "wrong" if isinstance(error, ValueError) else "failed"
            client.key_value_set(key, json.dumps({kind: str(error)}))
            raise
        client.key_value_set(key, json.dumps(answer))
        return answer["result"]
    answer = json.loads(_waited_for(client, key))
    if "wrong" in answer:
        raise ValueError(answer["wrong"])
    if "failed" in answer:
        raise RuntimeError(f"{what}: the first host failed: {answer['failed']}")
    return answer["result"]


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of what decides numbers, None where it is not.

    Packages that are there on one host alone are a difference too.
    """
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _told(what: str, mine: Any, seconds: float) -> dict[int, Any]:
    """Tell all hosts something and return what each of them has told, by number.

    Raises:
        ValueError: a host did not come in time, or came to another place.
    """
    client, key = _client(), f"nomic_jax/{next(_calls)}"
    client.key_value_set(f"{key}/{number()}", json.dumps([what, mine]))
    late = None
    try:
        client.wait_at_barrier(key, int(seconds * 1000))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        late = error
    said = {
        int(name.rpartition("/")[2]): json.loads(value)
        for name, value in client.key_value_dir_get(f"{key}/")
    }
    absent = [str(host) for host in range(count()) if host not in said]
    if absent:
        raise ValueError(
            f"{what}: host {', '.join(absent)} of {count()} did not come within "
            f"{seconds:g} s; see its own output"
        ) from late
    if any(place != what for place, _ in said.values()):
        places = "; ".join(f"host {h}: {place}" for h, (place, _) in said.items())
        raise ValueError(f"hosts are at different places: {places}; start all again")
    return {host: value for host, (_, value) in said.items()}


def _waited_for(client: Any, key: str) -> str:
    """Return a key's value when it is there, with a look at Ctrl-C now and then."""
    while True:
        try:
            return client.blocking_key_value_get(key, int(POLL_SECONDS * 1000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def _client() -> Any:
    client = distributed.global_state.client
    assert client is not None, "hosts.start() joins the hosts"
    return client


SEEN_SECONDS = 90.0  # until a shared file system shows what another host wrote
TOKEN = "hosts.token"  # what the first host writes, for the others to find


def check_shared(folder: str) -> None:
    """Refuse a folder that is not the same one on all hosts.

    Raises:
        ValueError: on every host, with those that do not see what the first one wrote.
    """
    if count() == 1:
        return
    place = join(folder, TOKEN)

    def work() -> str:
        token = uuid.uuid4().hex
        write_bytes(place, token.encode())
        return token

    token = broadcast_from_host0("shared folder", work)

    def look() -> None:
        deadline = time.monotonic() + SEEN_SECONDS
        while not exists(place) or read_bytes(place).decode() != token:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"{place} is not what the first host wrote: all hosts need the "
                    "same --out, on a file system they share or at a URL"
                )
            time.sleep(1)

    run_on_all_hosts("shared folder", look)


def wait_to_see(place: str) -> None:
    """Wait until this host sees a file that the first one has written.

    Raises:
        ValueError: it does not appear.
    """
    deadline = time.monotonic() + SEEN_SECONDS
    while not exists(place):
        if time.monotonic() > deadline:
            raise ValueError(f"host {number()} does not see {place}")
        time.sleep(1)
