"""Conversations: their tokens, what is scored, and what is refused, against texts written out by hand."""

import copy
import json

import numpy as np
import pytest
import toys

import ftn_jax
from ftn_jax.core.errors import InputError
from ftn_jax.models.chat import Chat
from ftn_jax.models.pretrained import load
from ftn_jax.models.tokens import Example, encode
from ftn_jax.streams.text.jsonl import load_prompts, load_texts
from ftn_jax.streams.text.pairs import prompts_of, texts_of
from ftn_jax.streams.text.records import line_of
from ftn_jax.streams.text.task import pad_examples

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}{{ eos_token if m.role == 'assistant' else '' }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
COUNTING = "{{ messages | length }} messages\n" + TEMPLATE  # writes the beginning otherwise once others follow
TALK = (("system", "Be short."), ("user", "one?"), ("assistant", "two"), ("user", "three?"), ("assistant", "four"))
RECORD = {"messages": [{"role": role, "content": content} for role, content in TALK]}
BEFORE = "[system]\nBe short.\n[user]\none?\n[assistant]\n"


def talking(template=TEMPLATE):
    tokens = toys.toy_tokens()
    tokenizer = copy.deepcopy(tokens.tokenizer)
    tokenizer.chat_template = template
    return type(tokens)(tokenizer, tokens.start, tokens.ends, tokens.size, "talker")


def said(example, tokens):
    """What is scored, each stretch for itself."""
    at = np.asarray(example.scored)
    parts = np.split(np.asarray(example.ids)[at], np.flatnonzero(np.diff(at) > 1) + 1)
    return [tokens.tokenizer.decode(part.tolist()) for part in parts]


def test_what_is_read_and_what_is_scored():
    tokens = talking()
    example = encode([Chat(TALK)], tokens)[0]
    first, second = "two<|endoftext|>", "four<|endoftext|>"
    between = "\n[user]\nthree?\n[assistant]\n"
    assert example.ids == tokens.ids([BEFORE + first + between + second])[0]
    assert said(example, tokens) == [first, second]
    assert (example.prompt, example.cut) == (tokens.ids([BEFORE + first + between])[0], False)
    assert said(encode([Chat(TALK, 3)], tokens)[0], tokens) == [second]
    assert tokens.prompt(Chat(TALK[:2])) == tokens.ids([BEFORE])[0]
    batch = pad_examples([example], length=60, targets=20, pad=0)
    scored = batch.weights[0] == 1
    assert batch.labels[0][scored].tolist() == [example.ids[at] for at in example.scored]
    assert batch.columns[0][scored].tolist() == [at - 1 for at in example.scored]


def test_a_conversation_that_is_too_long_loses_its_beginning():
    tokens = talking()
    whole = encode([Chat(TALK)], tokens)[0]
    n = len(whole.ids)
    assert encode([Chat(TALK)], tokens, n - 1)[0] == whole
    shorter = encode([Chat(TALK)], tokens, n - 3)[0]
    assert (shorter.ids, shorter.cut) == (whole.ids[2:], True)
    assert shorter.scored == [at - 2 for at in whole.scored]
    last = encode([Chat(TALK)], tokens, 2)[0]
    start = len(whole.prompt)
    assert last == Example(whole.ids[start - 1 : start + 2], [1, 2], cut=True)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("", "base 'talker' has no chat template, expected one for messages: name the base's fine-tune"),
        (COUNTING, "writes the messages before message 3 otherwise once others follow"),
        (TEMPLATE.replace("eos_token if", "'' if"), r"ends the assistant's turn with none of .*'<\|endoftext\|>'"),
        ("{{ raise_exception('no system here') }}", "refuses the messages: no system here"),
    ],
)
def test_a_template_that_does_not_serve_is_refused(template, message):
    with pytest.raises(InputError, match=message):
        encode([Chat(TALK)], talking(template))


def test_records_are_read_and_written_alike(tmp_path):
    split = {"prompt": RECORD["messages"][:3], "completion": RECORD["messages"][3:]}
    assert texts_of([RECORD, split, ("a", "b")]) == [Chat(TALK), Chat(TALK, 3), ("a", "b")]
    assert [json.loads(line_of(text)) for text in texts_of([RECORD, split])] == [RECORD, split]
    asked = Chat(TALK[:4])
    assert prompts_of([RECORD, {"prompt": RECORD["messages"][:4]}, RECORD["messages"][:4]]) == [asked] * 3
    assert prompts_of(RECORD["messages"][:4]) == [asked]
    file = tmp_path / "talk.jsonl"
    file.write_text(json.dumps(RECORD) + "\n")
    assert (load_texts(file), load_prompts(file)) == ([Chat(TALK)], [asked])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": []}, "messages is list, expected a list of messages"),
        ({"messages": ["hello"]}, "message 1 of messages is str, expected an object"),
        ({"messages": [{"role": "tool", "content": "4"}]}, "message 1 of messages has role 'tool', expected one of"),
        ({"messages": [{"role": "user"}]}, "message 1 of messages has no content"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "message 1 of messages content is list"),
        ({"messages": [{"role": "assistant", "content": "a", "tool_calls": [1]}]}, "message 1 of messages has tool_ca"),
        ({"messages": RECORD["messages"][:2]}, "messages has no message with role assistant"),
        ({"messages": [{"role": "assistant", "content": ""}]}, "messages has an assistant's message without content"),
        (RECORD | {"text": "a"}, "has messages and text"),
        (RECORD | {"tools": [{}]}, "has tools, which is not supported"),
        ({"prompt": RECORD["messages"], "completion": "a"}, "completion is str, expected a list of messages"),
        ({"prompt": "a", "completion": RECORD["messages"]}, "prompt is str, expected a list of messages"),
    ],
)
def test_records_that_are_no_conversation_are_refused(record, message):
    with pytest.raises(InputError, match=f"item 0 {message}"):
        texts_of([record])


def test_a_prompt_that_the_assistant_has_the_last_word_in_is_refused():
    for prompt in ([{"role": "assistant", "content": "a"}], {"prompt": RECORD["messages"]}):
        with pytest.raises(InputError, match="has no message that the assistant answers"):
            prompts_of([prompt])


def test_a_named_template_is_the_base_s(tmp_path):
    toys.save_toy_base(tmp_path / "base")
    file = tmp_path / "chat.jinja"
    file.write_text("{% generation %}" + TEMPLATE + "{% endgeneration %}")
    base = load(str(tmp_path / "base"), chat_template_path=str(file))
    assert len(base.chat_template) == 16
    assert base.tokens.prompt(Chat(TALK[:2])) == base.tokens.ids([BEFORE])[0]
    for content, message in (
        (b"{% for %}", "is no chat template \\(line 1"),
        (b"\xff", "can't be read \\(it is not UT"),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=f"config.model.chat_template_path: .*chat.jinja {message}"):
            load(str(tmp_path / "base"), chat_template_path=str(file))
    with pytest.raises(InputError, match=r"none\.jinja can't be read \(No such file"):
        load(str(tmp_path / "base"), chat_template_path=str(tmp_path / "none.jinja"))


@pytest.mark.slow  # a run on files on every Python: runs/test_own_tasks.py
def test_a_run_on_conversations(tmp_path):
    """From files to answers; the loss of a run's model is that of the texts written out as pairs."""
    toys.save_toy_base(tmp_path / "base")
    template = tmp_path / "chat.jinja"
    template.write_text("{{ eos_token }}" + TEMPLATE)  # which stands before a pair, too
    words = [
        f"{a} {b}" for a in ("red", "old", "big", "new", "hot") for b in ("cat", "dog", "sun", "tea", "hat", "car")
    ]

    def chats(answer):
        return [
            {"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": answer(word)}]}
            for word in words
        ]

    tasks = {"loud": chats(str.upper), "back": chats(lambda word: word[::-1])}
    settings = {"model.chat_template_path": str(template), "stream.steps": 4, "stream.batch": 4, "pool.size": 16}
    settings |= {"configurer.k": 4, "pool.rank": 2, "configurer.support": 3, "stream.max_length": 48}
    settings |= {"variants.lora_ftn_reserve.kernel": 3}
    given = {"workdir": tmp_path / "run", "base": str(tmp_path / "base"), "settings": settings, "progress": False}
    model = ftn_jax.fit(tasks, **given)
    asked = [{"role": "user", "content": "red cat"}]
    assert model.generate([asked], "loud", tokens=4) == model.generate(
        ["[user]\nred cat\n[assistant]\n"], "loud", tokens=4
    )
    written = [("[user]\nred cat\n[assistant]\n", "RED CAT")]
    record = {"messages": [*asked, {"role": "assistant", "content": "RED CAT"}]}
    np.testing.assert_allclose(model.example_losses([record], "loud"), model.example_losses(written, "loud"), rtol=1e-5)
    assert "loud" in model.recover(tasks["loud"][:4]).overlap
    template.write_text("Now." + TEMPLATE)
    with pytest.raises(
        InputError, match=r"was trained with another chat template than is in .*chat\.jinja now: put it"
    ):
        ftn_jax.load(tmp_path / "run")
    with pytest.raises(InputError, match="was begun with base"):
        ftn_jax.fit(tasks | {"third": tasks["loud"]}, **given)
