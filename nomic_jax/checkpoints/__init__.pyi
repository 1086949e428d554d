# Reading and writing any layout.
from .reader import Checkpoint as Checkpoint
from .reader import read_checkpoint as read_checkpoint
from .reader import without_head as without_head
from .writer import Layout as Layout
from .writer import write_checkpoint as write_checkpoint
from .problems import CheckpointError as CheckpointError
from .conversion import Conversion as Conversion
from .conversion import convert as convert

# Live modules.
from .model_folder import build as build
from .model_folder import load_model as load_model
from .model_folder import save_model as save_model

# Hub ids and folders.
from .hub import folder_digest as folder_digest
from .hub import resolve as resolve
from .embedding import embedding_for as embedding_for
