"""Files of evaluation tasks, written small."""

import gzip
import json


def write_jsonl(path, records):
    """Write records as JSON Lines; gzip where the name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


def write_beir(folder, corpus, queries, qrels, *, split="test"):
    """Write a BEIR folder: documents as (title, text) and queries by id."""
    documents = [
        {"_id": name, "title": title, "text": text}
        for name, (title, text) in corpus.items()
    ]
    write_jsonl(folder / "corpus.jsonl.gz", documents)
    write_jsonl(
        folder / "queries.jsonl",
        [{"_id": name, "text": text} for name, text in queries.items()],
    )
    lines = ["query-id\tcorpus-id\tscore"]
    lines += ["\t".join(map(str, row)) for row in qrels]
    (folder / "qrels").mkdir(exist_ok=True)
    (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return str(folder)
