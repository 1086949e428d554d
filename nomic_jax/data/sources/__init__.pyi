# The protocol, and what opens a path.
from .source import Source as Source
from .registry import open_source as open_source

# Pairs.
from .pairs import Pair as Pair
from .pairs import PairSource as PairSource
from .pairs import split_held_out as split_held_out
from .jsonl import JsonLines as JsonLines
from .jsonl import read_pairs as read_pairs
from .jsonl import read_texts as read_texts
from .jsonl import write_pairs as write_pairs
from .jsonl import write_texts as write_texts

# Contrastors' data lists.
from .contrastors import read_data_yaml as read_data_yaml

# What every Python installs.
from .installed_python import extract as extract
from .installed_python import python_corpus as python_corpus
from .installed_python import python_modules as python_modules
