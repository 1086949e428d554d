# Tokens.
from .tokenizer import bucket as bucket
from .tokenizer import pad as pad
from .tokenizer import TextTokenizer as TextTokenizer
from .packing import pack_texts as pack_texts
from .packing import Packing as Packing

# Batches.
from .schedule import PairSourceConfig as PairSourceConfig
from .schedule import Sampling as Sampling
from .schedule import Schedule as Schedule
from .mlm import corrupt as corrupt
from .mlm import Masking as Masking
from .mlm import MlmBatches as MlmBatches
from .pairs import PairBatches as PairBatches

# The prepare stage.
from .store.stage import PlacesConfig as PlacesConfig
from .store.stage import PrepareConfig as PrepareConfig
from .store.stage import PrepareStage as PrepareStage
