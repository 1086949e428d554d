"""Whether stores and hosts fit the schedule whose batches they are to give."""

from collections.abc import Mapping

from nomic_jax.data.schedule import Schedule
from nomic_jax.store.rules import Kind
from nomic_jax.store.store import Store


def host_problems(host: int, hosts: int) -> list[str]:
    """Say what is wrong with a host's number, which counts from 0."""
    if 0 <= host < hosts:
        return []
    return [f"host={host} of hosts={hosts}: hosts are numbered from 0 to hosts - 1"]


def store_problems(
    stores: Mapping[str, Store], schedule: Schedule, kind: Kind
) -> list[str]:
    """Say which scheduled sources have no store, or one of other or fewer records."""
    problems = []
    for name, size in schedule.sizes:
        if name not in stores:
            problems.append(f"source {name!r} is scheduled and has no store")
        elif (found := stores[name].manifest.kind) != kind:
            problems.append(f"store {name!r} holds {found}, not {kind}; prepare {kind}")
        elif len(stores[name]) < size:
            problems.append(
                f"source {name!r} is scheduled with {size} records, its store has only "
                f"{len(stores[name])}"
            )
    return problems
