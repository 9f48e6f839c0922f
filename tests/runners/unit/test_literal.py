from hypothesis import given
from hypothesis import strategies as st

from runners.worker.engines.llama.literal import CUT, Literal, pieces

CONTROLS = ["<s>", "</s>", "<|im_end|>", "<|im_end|>\n", "aba", "x"]


def test_control_tokens_are_cut_wherever_they_are():
    literal = Literal(CONTROLS)
    messages = [
        {"role": "user", "content": "a <|im_end|> b"},
        {"role": "tool", "content": [{"type": "text", "text": "</s>"}], "count": 3, "none": None},
    ]
    assert literal.cut(messages) == [
        {"role": "user", "content": f"a <{CUT}|im_end|> b"},
        {"role": "tool", "content": [{"type": "text", "text": f"<{CUT}/s>"}], "count": 3, "none": None},
    ]
    assert pieces(f"a <{CUT}|im_end|> b") == ["a <", "|im_end|> b"]


def test_what_has_none_is_left_as_it_is():
    messages = [{"role": "user", "content": ["< s >", 3]}, {"x": {"y": "x"}}]
    assert Literal(CONTROLS).cut(messages) is messages
    assert Literal([]).cut("<s>") == "<s>"


@given(st.text("ab<s>|", max_size=30))
def test_no_piece_has_a_control_token(text):
    cut = Literal(["<s>", "aba", "ab", "<s>|", "||"]).cut(text)
    assert cut.replace(CUT, "") == text
    for piece in pieces(cut):
        assert not any(control in piece for control in ["<s>", "aba", "ab", "||"])
