"""Small stages as processes of their own: to be killed, stopped, or several hosts.

    python training_process.py '{"name": "mlm", "stores": FOLDER, ...}'

The arguments are those of `train_stage`. Models are small but for the word table, which
makes a checkpoint take a while to write.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Orbax and Grain are imported here, and not only where a stage begins, for the forks.
import grain
import jax
import numpy as np
import orbax.checkpoint
import tokenizers
import tqdm
from compilation import FLAGS, LEVEL_0
from stores import TOKENIZER_DIGEST, write_pair_store, write_row_store

from nomic_jax.config import EmbeddingConfig
from nomic_jax.data.store.store import Store
from nomic_jax.data.tokenizer import SPECIAL_TOKENS, TextTokenizer
from nomic_jax.distributed import hosts
from nomic_jax.distributed.mesh import MeshConfig
from nomic_jax.training import loop as loop_module
from nomic_jax.training.contrastive import ContrastiveStage, PairData, train_contrastive
from nomic_jax.training.loop import LoopConfig
from nomic_jax.training.losses.contrastive import ContrastiveLoss
from nomic_jax.training.mlm import MlmData, MlmStage, ModelSize, fresh_model, train_mlm
from nomic_jax.training.optimizer import OptimizerConfig
from nomic_jax.training.placement import MemoryConfig
from nomic_jax.training.run_folder import RunFolder

assert grain
tqdm.tqdm.get_lock()  # or each process that is killed leaves a semaphore behind

STAGES = ("mlm", "pretrain", "finetune")
WORDS = 8192  # times 64: with its moments, 6 MB of each checkpoint
BATCH, RECORDS, NEGATIVES = 8, 40, 3
ROW, QUERY, DOCUMENT = 32, 8, 24  # tokens


class Words(TextTokenizer):
    """Ids are what the stores were made of."""

    def __init__(self):
        words = [*SPECIAL_TOKENS, *(f"w{n}" for n in range(len(SPECIAL_TOKENS), WORDS))]
        vocabulary = {word: number for number, word in enumerate(words)}
        model = tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]")
        super().__init__(tokenizers.Tokenizer(model))
        self.backend.add_special_tokens(list(SPECIAL_TOKENS))

    @property
    def digest(self):
        return TOKENIZER_DIGEST


def write_stores(folder):
    """Make the rows and the pairs that the stages train on."""
    rng = np.random.default_rng(0)

    def text(length):
        return rng.integers(len(SPECIAL_TOKENS), WORDS, length, dtype=np.int32)

    rows = [[text(ROW // 2), text(ROW // 2)] for _ in range(RECORDS)]
    write_row_store(folder / "rows", "rows", rows, row_length=ROW)
    # Of so many lengths that each document takes a row: there is one shape to compile.
    lengths = [
        (QUERY - 2, QUERY + 1),
        *[(DOCUMENT - 3, DOCUMENT + 1)] * (1 + NEGATIVES),
    ]
    pairs = [[text(rng.integers(*each)) for each in lengths] for _ in range(RECORDS)]
    write_pair_store(
        folder / "pairs",
        "pairs",
        pairs,
        query_length=QUERY,
        document_length=DOCUMENT,
    )


def mlm_stage(loop, mesh):
    return MlmStage(
        name="mlm",
        model=ModelSize(
            num_layers=1,
            width=64,
            num_heads=2,
            mlp_width=64,
            trained_positions=ROW,
            dropout=0.1,
        ),
        data=MlmData(stores="/", row_length=ROW),
        optimizer=optimizer("linear"),
        train=loop,
        mesh=mesh,
        memory=MemoryConfig(tokens_at_once=4 * ROW),
    )


def contrastive_stage(name, loop, mesh):
    return ContrastiveStage(
        name=name,
        data=PairData(
            stores="/",
            query_length=QUERY,
            document_length=DOCUMENT,
            num_negatives=NEGATIVES if name == "finetune" else 0,
        ),
        loss=ContrastiveLoss(temperature=0.05, learned_scale=name == "pretrain"),
        optimizer=optimizer("inverse_sqrt"),
        train=loop,
        mesh=mesh,
        memory=MemoryConfig(tokens_at_once=4 * DOCUMENT),
    )


def optimizer(schedule):
    return OptimizerConfig(
        learning_rate=1e-3,
        weight_decay=0.01,
        warmup_steps=2,
        schedule=schedule,
        epsilon=1e-6,
        clip_norm=1.0,
    )


def train_stage(
    name,
    stores,
    folder,
    *,
    steps,
    save_every,
    pause=0.0,  # seconds of each step, so that a signal can come at any of them
    writing=0.0,  # seconds that each checkpoint takes longer
    devices=1,
    mesh=None,
    cache=None,  # of compiled programs
    optimized=False,  # compiled as users' programs are: where bits are compared
    log=None,
    coordinator="",
    of_hosts=1,
    host=-1,
):
    """Run a stage; FOLDER.batches gets a line a step, FOLDER.begun marks one."""
    if log is not None:
        with open(log, "a") as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    forced = f"--xla_force_host_platform_device_count={devices}"
    os.environ["XLA_FLAGS"] = forced if optimized else f"{FLAGS} {forced}"
    jax.config.update(LEVEL_0.lower(), not optimized)
    hosts.start(coordinator, of_hosts, host)
    place = Path(folder)
    hosts.broadcast_from_host0("folder", lambda: bool(RunFolder.open(place, {})))
    opened = RunFolder.open(place, {}, write=hosts.is_first())
    handler = orbax.checkpoint.StandardCheckpointHandler
    handler.finalize = delayed(handler.finalize, writing)
    loop_module.put_batch = noting(loop_module.put_batch, f"{folder}.batches")
    loop = LoopConfig(
        steps=steps,
        batch_size=BATCH,
        seed=3,
        log_every=1,
        save_every=save_every,
        evaluate_every=1,
    )

    def rest(_):
        Path(f"{folder}.begun").touch()
        time.sleep(pause)
        return {}

    layout = MeshConfig(**(mesh or {}))
    tokenizer = Words()
    start = mlm_stage(loop, layout)
    model = fresh_model(start, tokenizer, dtype="float32")
    if name == "mlm":
        store = {"rows": Store.open(Path(stores) / "rows")}
        train_mlm(start, model, tokenizer, store, opened, evaluate=rest)
    else:
        embedding = EmbeddingConfig(pooling="mean", layer_norm=False, max_length=ROW)
        store = {"pairs": Store.open(Path(stores) / "pairs")}
        train_contrastive(
            contrastive_stage(name, loop, layout),
            model.encoder,
            tokenizer,
            embedding,
            store,
            opened,
            evaluate=rest,
        )


def delayed(finalize, seconds):
    """Let the last act of a write, before the checkpoint gets its name, take longer."""

    def slow(self, directory):
        time.sleep(seconds)
        return finalize(self, directory)

    return slow


def noting(put_batch, file):
    """Note what each batch says, however its texts are laid out in rows."""

    def put(batch, mesh):
        if jax.process_count() == 1:
            with open(file, "a") as lines:
                lines.write(digest(batch) + "\n")
        return put_batch(batch, mesh)

    return put


def digest(batch):
    arrays = list(jax.tree.leaves(batch))
    if hasattr(batch, "slots"):
        arrays = [*of_pairs(batch, "query"), *of_pairs(batch, "document")]
    found = hashlib.blake2b(digest_size=8)
    for array in arrays:
        found.update(f"{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def of_pairs(batch, side):
    """The tokens of the texts of one side, in the order of the batch."""
    places = getattr(batch, f"{side}_places")
    parts, room = batch.slots.shape
    rows, texts = batch.texts.slot_lengths.shape
    ids, segments = batch.texts.tokens.ids, batch.texts.tokens.segment_ids
    for part, slot in zip(*np.divmod(places, room), strict=True):
        row, text = divmod(int(batch.slots[part, slot]), texts)
        row += int(part) * rows // parts
        yield ids[row][segments[row] == text + 1]
    if side == "document":
        yield batch.document_ids.reshape(-1, 2)[places]


if __name__ == "__main__":
    train_stage(**json.loads(sys.argv[1]))
