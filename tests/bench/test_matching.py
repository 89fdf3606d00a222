"""The end-to-end benches of matching run, in miniature, and refuse results that are wrong."""

from __future__ import annotations

import pytest
import torch

from bench import e2e_match, e2e_retrieval

SMALL = "--size 32 --layers 1 --threads 1 --dtype float32 --seconds 0".split()
MATCH = [*SMALL, *"--images 3 --texts 4 --sample-texts 2".split()]
RETRIEVAL = [*SMALL, *"--images 6 --texts 8 --k 4 --check-images 6 --check-texts 12".split()]
HELD = "--budget-mib 1 --held-images 30".split()


def test_matching(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    rows = e2e_match.main(MATCH)
    out = capsys.readouterr().out
    assert "all pairs: logits of 4 pairs agree" in out and "timed on 2 of 4 texts" in out
    for row in rows.values():
        assert len(row) == 2 and all(timing.median > 0 for timing in row.values())


def test_matching_refuses_wrong_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    right = e2e_match.public_call
    monkeypatch.setattr(e2e_match, "public_call", lambda *args: right(*args).flip(0))
    with pytest.raises(e2e_match.WrongResult, match="one image"):
        e2e_match.main(MATCH)


def test_retrieval(capsys: pytest.CaptureFixture[str]) -> None:
    result = e2e_retrieval.main([*RETRIEVAL, *HELD])
    out = capsys.readouterr().out
    assert "6 queries, k=3" in out and "12 queries, k=3" in out and "memories of at most" in out
    assert list(result) == ["blip_fast", "reference"]
    assert all(timing.median > 0 for timing in result.values())


def test_retrieval_refuses_other_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = e2e_retrieval.PlainRetrieval
    right = plain.of_text
    monkeypatch.setattr(plain, "of_text", lambda *args: right(*args) + 1)
    with pytest.raises(e2e_retrieval.WrongResult, match="images of texts"):
        e2e_retrieval.main(RETRIEVAL)


def test_all_of_the_work_is_that_of_its_parts() -> None:
    seen = {}
    for name, more in (("sample", ()), ("whole", ("--whole",))):
        parsed = e2e_retrieval.parser().parse_args([*RETRIEVAL, *more])
        with torch.inference_mode():
            seen[name] = e2e_retrieval.Work(parsed, torch.float32)
    sample, whole = seen["sample"], seen["whole"]
    assert len(whole.pairs) == whole.number > len(sample.pairs) and whole.our_scale == 1
    with torch.inference_mode():
        every = dict(zip(map(tuple, whole.pairs.tolist()), whole.ours_call(), strict=True))
        for query, row in enumerate(whole.of_text()):
            images = whole.to_images[query].tolist()
            expected = torch.stack([every[image, query] for image in images])
            torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-4)
