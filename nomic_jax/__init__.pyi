__version__: str

# Models.
from .config import EmbeddingConfig as EmbeddingConfig
from .config import ModelConfig as ModelConfig
from .model.encoder import NomicBert as NomicBert
from .model.heads import MaskedLanguageModel as MaskedLanguageModel

# What an encoder reads.
from .batch import Tokens as Tokens
from .data.tokenizer import TextTokenizer as TextTokenizer

# Embedding.
from .inference.embedder import Embedder as Embedder

# Folders.
from .checkpoints.conversion import convert as convert
from .checkpoints.model_folder import load_model as load_model
from .checkpoints.model_folder import save_model as save_model

# Training.
from .pipeline.runner import run as run
