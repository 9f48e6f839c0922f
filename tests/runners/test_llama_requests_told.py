"""What is told of a request for text: what it was, and how many tokens; never the text."""

from __future__ import annotations

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")
pytest.importorskip("jinja2")

from guardrails.testing import capture_events
from runners import LlamaRunner
from runners.errors import PromptTooLong
from runners.events import RequestFinished

from .engines import tiny_gguf
from .engines.tiny_gguf import EOS, IM_END

pytestmark = pytest.mark.anyio
OPTIONS = {"max_tokens": 12, "logit_bias": {EOS: -100.0, IM_END: -100.0}}


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def test_tokens_are_told_and_no_text(tmp_path):
    model = tiny_gguf.write(tmp_path / "tiny.gguf")
    async with LlamaRunner(model, slots=2, context=256, name="llama", publish_status=False) as runner:
        with capture_events(RequestFinished) as seen:
            completion = await runner.complete("the cab", **OPTIONS)
            await runner.chat([{"role": "user", "content": "the cab"}], n=2, **OPTIONS)
            text = "".join([piece async for piece in runner.stream_complete("the cab", **OPTIONS)])
            async with runner.stream_chat([{"role": "user", "content": "the cab"}], **OPTIONS) as pieces:
                await anext(pieces)
            with pytest.raises(PromptTooLong):
                await runner.complete("the cab " * 900, max_tokens=5)
            await runner.embed(["the cab"])
            await runner.count("the cab")
            await runner.tokenize("the cab")
        with capture_events(RequestFinished) as refused:
            with pytest.raises(ValueError, match="temperature"):
                await runner.complete("the cab", temperature=-1)
            runner.stream_complete("never read")
    assert refused == []
    assert {event.source for event in seen} == {"llama"}
    assert {event.model for event in seen} == {"tiny.gguf"}
    assert [(event.operation, event.outcome, event.output_tokens) for event in seen] == [
        ("text_completion", "answered", 12),
        ("chat", "answered", 24),
        ("text_completion", "answered", 12),
        ("chat", "cancelled", None),
        ("text_completion", "failed", None),
        ("embeddings", "answered", None),
        ("tokenize", "answered", None),
        ("tokenize", "answered", None),
    ]
    assert seen[0].input_tokens == seen[2].input_tokens == completion.prompt_tokens
    assert [event.error for event in seen if event.error] == ["PromptTooLong"]
    assert [event.first is not None for event in seen] == [False, False, True, True, False, False, False, False]
    assert seen[2].queued <= seen[2].first <= seen[2].seconds
    assert text
    assert "cab" not in str(seen)
    assert text not in str(seen)
