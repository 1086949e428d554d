from pathlib import Path

from nomic_jax.checkpoints.table import document

DOCUMENT = Path(__file__).parent.parent / "docs" / "conversion.md"


def test_the_table_of_conversions_is_what_the_rules_say():
    # If the rules changed on purpose:
    # python -m nomic_jax.checkpoints.table > docs/conversion.md
    assert DOCUMENT.read_text(encoding="utf-8") == document()
