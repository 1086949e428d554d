"""The filter stage: of pairs, those that a model finds consistent."""

import dataclasses

from nomic_jax.curation.consistency import Filtering
from nomic_jax.curation.stage_pairs import StagePairs


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterStage:
    """Keep the pairs whose document is found by its query, and tokenise them."""

    name: str
    data: StagePairs
    filtering: Filtering
