"""What only a process of its own can tell: time to a first embedding, peak memory."""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
from environment import ROOT
from record import Row

ROUNDS = 3
GIB = 2**30
BESIDE = "sentence-transformers"

OURS = """
import json, sys
from nomic_jax import Embedder
embed = lambda texts: model.encode(texts, task="search_document")
model = Embedder.from_pretrained(sys.argv[1])
def device_bytes():
    import jax
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
"""
THEIRS = """
import json, sys
from sentence_transformers import SentenceTransformer
import torch, transformers
transformers.logging.disable_progress_bar()
on_gpu = torch.cuda.is_available()
model = SentenceTransformer(
    sys.argv[1],
    device="cuda" if on_gpu else "cpu",
    model_kwargs={"dtype": torch.bfloat16 if on_gpu else torch.float32},
)
embed = lambda texts: model.encode(
    texts, prompt=sys.argv[2], show_progress_bar=False, batch_size=8
)
device_bytes = lambda: torch.cuda.max_memory_allocated() if on_gpu else 0
"""
# VmHWM is the kernel's high-water mark of this program alone.
REPORT = """
embed(["What is TSNE?"])
print("first", flush=True)
if len(sys.argv) > 3:
    embed(json.load(open(sys.argv[3])))
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    print(int(status["VmHWM"].split()[0]) * 1024, device_bytes())
"""


def run(code: str, work: Path, prefix: str, *texts: str) -> tuple[float, list[int]]:
    """Run a process; seconds from its start to its first vector, and bytes it had."""
    environment = os.environ | {
        "XDG_CACHE_HOME": str(work / "cache"),
        # Memory that it uses, not what it would set aside.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", code + REPORT, str(work / "model"), prefix, *texts],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,  # where nomic_jax is, installed or not
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        first = time.perf_counter() - began
        rest = process.stdout.read().split()
    if process.returncode:
        raise RuntimeError(f"a process ended with status {process.returncode}")
    return first, [int(number) for number in rest]


def measure_processes(work: Path, prefix: str) -> list[Row]:
    """Start processes that embed one text, and one of each side that embeds many.

    Args:
        work: holds the folder `model` and `texts.json`; the cache is made there.
        prefix: of the task.
    """
    cold, _ = run(OURS, work, prefix)
    seconds: dict[str, list[float]] = {OURS: [], THEIRS: []}
    run(THEIRS, work, prefix)
    for _ in range(ROUNDS):
        for code, found in seconds.items():
            found.append(run(code, work, prefix)[0])
    ours, theirs = (statistics.median(found) for found in seconds.values())
    rows = [
        Row(
            work="time to first embedding",
            detail="process start, imports, weights, one query; warm cache",
            ours=ours,
            theirs=theirs,
            unit="s",
            beside=BESIDE,
            ratio=theirs / ours,
            goal="first-embedding",
            extra={"nothing compiled yet, s": cold},
        )
    ]
    texts = str(work / "texts.json")
    (_, mine), (_, other) = (run(code, work, prefix, texts) for code in seconds)
    names = ["peak memory of the process"]
    if jax.default_backend() != "cpu":
        names.append("peak memory of the device")
    rows += [
        Row(
            work=name,
            detail="weights, and encoding mixed texts",
            ours=mine[place] / GIB,
            theirs=other[place] / GIB,
            unit="GiB",
            beside=BESIDE,
        )
        for place, name in enumerate(names)
    ]
    return rows
