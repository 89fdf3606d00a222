"""Search in stored features: the nearest by ITC, and where it can judge them, ITM's order.

A text is searched among pictures and a picture among texts in both stages. Between two texts or
two pictures there is nothing for ITM to read, so the cosine decides.
"""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from blip_fast.data.index import FeatureIndex
from blip_fast.tasks.model import Blip

Engine = Literal["exact", "faiss"]

# From here on an exact search, one pass over all features, takes noticeable fractions of a second.
MANY = 1_000_000
_PART = 1 << 18  # features compared at once
_PROBES = 32  # of FAISS's lists, of about sqrt(N) of them


@dataclass(frozen=True)
class Hit:
    """One result.

    Attributes:
        name: the picture's path, or the text.
        similarity: ITC cosine.
        probability: of a match, by ITM; None where it was not asked, NaN where the picture can
            no longer be read.
        logit: of the match.
    """

    name: str
    similarity: float
    probability: float | None = None
    logit: float | None = None


def check_model(index: FeatureIndex, model: Blip) -> None:
    """Refuse features of another model: they cannot be compared.

    Raises:
        ValueError: naming both.
    """
    made_by = index.facts.get("sha256", "")
    if made_by and model.sha256 and made_by != model.sha256:
        raise ValueError(
            f"{index.path} was made by {index.facts.get('model')!r} (sha256 {made_by[:12]}), not "
            f"by {model.source!r} (sha256 {model.sha256[:12]}); give that model, or embed again"
        )
    width = model.config.embed_width
    if index.features.shape[1] != width:
        raise ValueError(
            f"{index.path} has features of width {index.features.shape[1]}, {model.source!r} makes "
            f"{width}; embed again with this model"
        )


def search(
    index: FeatureIndex,
    model: Blip,
    query: str | Path,
    of: Literal["text", "image"],
    *,
    number: int = 10,
    rerank: int = 32,
    engine: Engine | None = None,
) -> list[Hit]:
    """The best matches of a text or a picture, best first.

    Args:
        query: a text, or a picture's path or URL, as `of` says.
        number: of hits.
        rerank: how many of the nearest ITM orders anew, by logit plus cosine; 0 for none.
        engine: "exact" compares with everything; "faiss" with what an inverted file finds near,
            kept beside the features as NAME.faiss. FAISS from a million rows on where it is
            installed, if not given.

    Raises:
        ValueError: where the index is another model's, the picture cannot be read, or FAISS is
            asked for and not installed.
    """
    check_model(index, model)
    if of == "text":
        vector = model.embed_texts(str(query))[0].numpy()
    else:
        # Unlike `embed_images` this raises, and says what is wrong with the picture.
        vector = model.embed_images(model.see([query]))[0].numpy()
    judged = rerank > 0 and index.of_texts == (of == "image")
    wanted = max(number, rerank) if judged else number
    similarities, places = nearest(index, vector, wanted, engine)
    column = "text" if index.of_texts else "path"
    names = [str(index.rows[place][column]) for place in places]
    hits = [Hit(name, float(s)) for name, s in zip(names, similarities, strict=True)]
    if judged:
        hits[:rerank] = _judged(model, query, hits[:rerank], index.of_texts)
    return hits[:number]


def nearest(
    index: FeatureIndex, vector: np.ndarray, number: int, engine: Engine | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and places of the features nearest to a vector, descending."""
    if engine is None:
        there = importlib.util.find_spec("faiss") is not None
        engine = "faiss" if there and len(index.features) >= MANY else "exact"
    found = _with_faiss if engine == "faiss" else _exactly
    return found(index, np.asarray(vector, np.float32), number)


def _exactly(index: FeatureIndex, vector: np.ndarray, number: int) -> tuple[Any, Any]:
    query, parts = torch.from_numpy(vector), []
    for start in range(0, len(index.features), _PART):
        part = torch.from_numpy(np.array(index.features[start : start + _PART]))
        parts.append((part @ query).nan_to_num(nan=-torch.inf))
    cosines = torch.cat(parts) if parts else torch.empty(0, dtype=torch.float32)
    values, places = cosines.sort(descending=True, stable=True)
    kept = int((values[:number] > -torch.inf).sum())
    return values[:kept].numpy(), places[:kept].numpy()


def _with_faiss(index: FeatureIndex, vector: np.ndarray, number: int) -> tuple[Any, Any]:
    if importlib.util.find_spec("faiss") is None:
        raise ValueError("FAISS is not installed; pip install 'blip-fast[search]', or take 'exact'")
    import faiss

    inverted = _inverted_file(faiss, index)
    inverted.nprobe = _PROBES
    values, places = inverted.search(vector[None], number)
    there = places[0] >= 0
    return values[0][there], places[0][there]


def _inverted_file(faiss: Any, index: FeatureIndex) -> Any:
    """FAISS's index of the features, read from beside them or made and written there."""
    path = index.path.with_suffix(".faiss")
    good = np.flatnonzero(np.isfinite(index.features).all(1))
    if path.is_file() and path.stat().st_mtime >= index.path.stat().st_mtime:
        # Of a mapped file only the lists that a query probes are read.
        inverted = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        if inverted.ntotal == len(good):
            return inverted
    features = np.ascontiguousarray(index.features[good], np.float32)
    lists = max(1, int(len(good) ** 0.5))
    kind = (features.shape[1], f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    inverted = faiss.index_factory(*kind)
    inverted.train(features)
    inverted.add_with_ids(features, good.astype(np.int64))
    faiss.write_index(inverted, str(path))
    return inverted


def _judged(model: Blip, query: str | Path, hits: list[Hit], texts: bool) -> list[Hit]:
    """The same hits in ITM's order; what can no longer be read comes last."""
    if not hits:
        return []
    names = [hit.name for hit in hits]
    images, written = ([query], names) if texts else (names, [str(query)])
    with warnings.catch_warnings():  # its NaN says so
        warnings.filterwarnings("ignore", message=".*could not be read")
        logits = model.match(images, written, score="logits").reshape(-1, 2)
    judged = [
        Hit(hit.name, hit.similarity, float(both.softmax(0)[1]), float(both[1]))
        for hit, both in zip(hits, logits, strict=True)
    ]

    def order(hit: Hit) -> tuple[bool, float]:
        assert hit.logit is not None
        lost = hit.logit != hit.logit
        return lost, 0.0 if lost else -(hit.logit + hit.similarity)

    return sorted(judged, key=order)
