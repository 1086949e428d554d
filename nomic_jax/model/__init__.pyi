# The encoder.
from .encoder import NomicBert as NomicBert
from .layers import Mlp as Mlp
from .moe import MixtureOfExperts as MixtureOfExperts

# Heads.
from .heads import EncoderWithHead as EncoderWithHead
from .heads import make_model as make_model
from .heads import MaskedLanguageModel as MaskedLanguageModel
from .heads import TextClassifier as TextClassifier

# From hidden states to embeddings.
from .pooling import embed as embed
from .pooling import mean_pool as mean_pool
from .pooling import Projection as Projection
