# Rules and records.
from .records import encode_record as encode_record
from .records import PairRule as PairRule
from .records import RowRule as RowRule
from .manifest import Manifest as Manifest
from .manifest import PAIRS as PAIRS
from .manifest import shard_name as shard_name
from .manifest import TEXT as TEXT
from .manifest import write_manifest as write_manifest
from .shard import write_shard as write_shard

# Preparing.
from .prepare import prepare_collection as prepare_collection
from .prepare import prepare_store as prepare_store
from .stage import is_prepared as is_prepared
from .stage import prepare_corpus as prepare_corpus
from .stage import write_sources as write_sources
from .stage import write_training_pairs as write_training_pairs

# Reading.
from .store import open_stores as open_stores
from .store import Store as Store
