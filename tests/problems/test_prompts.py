"""Prompts: chat templates, special tokens, over-long prompts."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sppo_lit.errors import InputError
from sppo_lit.problems.prompts import encode_problems, render_prompts
from sppo_lit.types import Problem

WORDS = ["<unk>", "<s>", "</s>", "<user>", "<system>", "<assistant>", "be", "brief", "what", "is", "it"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}> {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """Words as tokens; puts <s> in front and </s> behind, as some tokenizers do."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", WORDS.index("<s>")), ("</s>", WORDS.index("</s>"))]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    wrapped.add_special_tokens({"additional_special_tokens": ["<user>", "<system>", "<assistant>"]})
    wrapped.chat_template = template
    return wrapped


def words(ids: list[int]) -> str:
    assert isinstance(ids, list) and all(isinstance(i, int) for i in ids)
    return " ".join(WORDS[i] for i in ids)


def test_chat_template_has_one_bos_and_ends_in_the_generation_prompt():
    chat = tokenizer(TEMPLATE)
    assert words(render_prompts(chat, ["what is it"])[0]) == "<s> <user> what is it </s> <assistant>"
    assert (
        words(render_prompts(chat, ["what"], "be brief")[0])
        == "<s> <system> be brief </s> <user> what </s> <assistant>"
    )
    own = chat.apply_chat_template([{"role": "user", "content": "what is it"}], add_generation_prompt=True)
    assert render_prompts(chat, ["what is it"])[0] == list(own["input_ids"] if hasattr(own, "keys") else own)


def test_without_template_the_prompt_is_left_open():
    assert words(render_prompts(tokenizer(), ["what is it"])[0]) == "<s> what is it"
    assert words(render_prompts(tokenizer(), ["what is it"], "be brief")[0]) == "<s> be brief what is it"


def test_template_that_refuses_system_messages():
    chat = tokenizer("{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}what")
    assert words(render_prompts(chat, ["what"])[0]) == "what"
    with pytest.raises(InputError, match=r"refuses a system message.*no system role"):
        render_prompts(chat, ["what"], "be brief")


def test_overlong_prompts_are_dropped_and_counted():
    problems = [Problem(f"k/{n}", " ".join(["is"] * n), "1") for n in (1, 5, 3, 4)]
    kept, dropped = encode_problems(problems, tokenizer(), 4)
    assert [(p.key, len(ids)) for p, ids in kept] == [("k/1", 2), ("k/3", 4)] and dropped == 2
    with pytest.raises(InputError, match=r"All 4 prompts .* max_prompt_tokens = 1 \(the shortest has 2 tokens\)"):
        encode_problems(problems, tokenizer(), 1)
    with pytest.raises(InputError, match="empty"):
        encode_problems([], tokenizer(), 4)
