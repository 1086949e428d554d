# Texts to vectors.
from .embedder import Embedder as Embedder
from .batching import tokenize as tokenize

# Vectors to neighbours.
from .search import top_k as top_k

# Masked tokens.
from .masked_tokens import fill_mask as fill_mask
from .masked_tokens import load_filler as load_filler

# Checks of a folder.
from .verify import check_fingerprint as check_fingerprint
from .verify import check_torch as check_torch
