import jax
import jax.numpy as jnp

from nomic_jax.storage import exists, sizes
from nomic_jax.training.loop import Trace


def test_a_trace_goes_to_a_url_as_well(monkeypatch):
    def start(folder):
        (folder / "plugins").mkdir()
        (folder / "plugins" / "one.xplane.pb").write_bytes(b"trace")

    monkeypatch.setattr(jax.profiler, "start_trace", start)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
    place = "memory://runs/traced/profile"
    with Trace(place, first=2, steps=1) as trace:
        for step in (1, 2, 3):
            trace.before(step)
            trace.after(step, jnp.ones(3))
            assert exists(place) == (step >= 2)
    assert sizes(f"{place}/plugins") == {"one.xplane.pb": 5}
