"""The list of a collection's stores, which is written when they are made."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from nomic_jax import storage
from nomic_jax.sources.files import cannot_read
from nomic_jax.store.manifest import read_manifest

STORES = "stores.json"  # the names of the stores, written last
TEXT, PAIRS = "text", "pairs"  # a stage's folders of stores


def read_names(url: str | Path) -> list[str]:
    """Read the names of a collection's stores.

    Raises:
        FileNotFoundError: there is no list of them.
        ValueError: it is damaged.
    """
    place = storage.join(url, STORES)
    try:
        value = storage.read_json(place)
    except FileNotFoundError:
        raise
    except NotADirectoryError:
        raise ValueError(f"{url} is a file; give the folder of the stores") from None
    except OSError as error:
        raise cannot_read(place, error) from error
    names = value.get("stores") if isinstance(value, dict) else None
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ValueError(
            f'{place} holds no {{"stores": [names]}}: it was changed; delete it and '
            "run the same prepare command again"
        )
    return names


def write_names(
    url: str | Path, names: Sequence[str], *, tokenizer_digest: str
) -> None:
    """List stores behind those that are listed, and any that lie there unlisted.

    The list is read just before: another command may have written it meanwhile. What it
    lost all the same is found by its folder.

    Args:
        url: the collection's folder.
        names: of the stores just made.
        tokenizer_digest: of all of them; a store of another is not listed.

    Raises:
        OSError: the list cannot be written.
        ValueError: the list that is there is damaged.
    """
    try:
        listed = read_names(url)
    except FileNotFoundError:
        listed = []
    found = [n for n in storage.folders(url) if _belongs(url, n, tokenizer_digest)]
    value = {"stores": list(dict.fromkeys((*listed, *names, *found)))}
    storage.write_json(storage.join(url, STORES), value)


def _belongs(url: str | Path, name: str, digest: str) -> bool:
    with contextlib.suppress(ValueError):  # no store, or none that can be read
        manifest = read_manifest(storage.join(url, name))
        return (manifest.name, manifest.tokenizer_digest) == (name, digest)
    return False
