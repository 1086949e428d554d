"""Strict JAX, tiny models, and what is skipped where PyTorch or real folders lack."""

import collections
import gc
import importlib.util
import os
from pathlib import Path

import compilation
import pytest
import shape_checks

WEIGHTS, DATA = "NOMIC_JAX_REAL_WEIGHTS", "NOMIC_JAX_REAL_DATA"
ASK_FOR = ("gpu", "tpu", "fresh", "sweep")  # marks that run when -m names them
REQUIRE_ALL = "NOMIC_JAX_REQUIRE_ALL"  # "1": a skip of a torch or real test fails


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """Keep what is cached out of the user's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_configure():
    """Set what must be set before JAX starts and the package is imported."""
    for name, value in compilation.VARIABLES.items():
        os.environ.setdefault(name, value)
    shape_checks.install()
    import jax

    jax.config.update("jax_numpy_rank_promotion", "raise")
    # Traces make objects by the million, and few of them are cycles; with Python's own
    # limits the search for cycles took a tenth of the time.
    gc.set_threshold(100_000, 50, 100)


def pytest_collection_modifyitems(config, items):
    """Leave out what is to be asked for, and begin with the files that take long."""
    wanted = [
        item
        for item in items
        if all(
            name in config.option.markexpr or item.get_closest_marker(name) is None
            for name in ASK_FOR
        )
    ]
    config.hook.pytest_deselected(items=list(set(items) - set(wanted)))
    slow = collections.Counter(
        item.path for item in wanted if item.get_closest_marker("slow")
    )
    items[:] = sorted(wanted, key=lambda item: -slow[item.path])


def pytest_collection_finish():
    gc.freeze()  # what was imported stays


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    import jax

    fast = not any(map(item.get_closest_marker, ("optimized", "real", "gpu")))
    jax.config.update(compilation.LEVEL_0.lower(), fast)
    if item.get_closest_marker("torch") and not importlib.util.find_spec("torch"):
        pytest.skip("PyTorch is not installed; the extra [test] brings it")


def _refuse_skip(report, name):
    if report.skipped and os.environ.get(REQUIRE_ALL) == "1":
        reason = report.longrepr[2] if report.longrepr else "no reason given"
        report.outcome = "failed"
        report.longrepr = f"{name} may not be skipped with {REQUIRE_ALL}=1: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    marked = item.get_closest_marker("torch") or item.get_closest_marker("real")
    if marked and not hasattr(report, "wasxfail"):
        _refuse_skip(report, item.nodeid)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    _refuse_skip(report, collector.nodeid)
    return report


def _folder(variable):
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set")
    folder = Path(os.environ[variable]).expanduser()
    if not folder.is_dir():
        pytest.skip(f"{variable}={folder} is not a folder")
    return folder


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """The folder that holds the published model folders, by model name."""
    return _folder(WEIGHTS)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that holds real text."""
    return _folder(DATA)


@pytest.fixture(scope="session")
def tiny_config():
    """Two layers of width 32, trained on texts of up to 16 tokens."""
    from nomic_jax.config import ModelConfig

    return ModelConfig(
        vocab_size=128,
        type_vocab_size=2,
        num_layers=2,
        width=32,
        num_heads=2,
        mlp_width=64,
        layer_norm_epsilon=1e-12,
        rope_base=1000.0,
        trained_positions=16,
        rope_scaling_factor=2.0,
        # Ten times the published 0.02: attention is then far from uniform.
        initializer_range=0.2,
    )


@pytest.fixture(scope="session")
def tiny_model(tiny_config):
    """A `NomicBert` with random weights."""
    from flax import nnx

    from nomic_jax.model.encoder import NomicBert

    return NomicBert(tiny_config, rngs=nnx.Rngs(0))
