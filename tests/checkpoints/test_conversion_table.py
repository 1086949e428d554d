from paths import ROOT

from tools.conversion_table import document

DOCUMENT = ROOT / "docs" / "conversion.md"


def test_the_table_of_conversions_is_what_the_rules_say():
    # If the rules changed on purpose:
    # python -m tools.conversion_table > docs/conversion.md
    assert DOCUMENT.read_text(encoding="utf-8") == document()
