"""Take away what a model thought before it answered: think blocks, channels, and the tokens around a turn."""

from __future__ import annotations

import re
from typing import NamedTuple

_THINK_NAMES = (
    r"think|thinking|thought|thoughts|reasoning|reason|reflection|scratchpad|analysis|seed:think|antthinking|"
    r"inner_monologue|chain_of_thought|cot|plan|planning|rationale"
)
# Every branch begins with the same class of characters, so that the search can skip to the next of them.
_TAG = re.compile(
    rf"[<\[◁](?i:(?P<open>(?<=<)(?:{_THINK_NAMES})(?:\s[^<>]{{0,60}})?>|(?<=\[)THINK\]|(?<=◁)think▷|"
    rf"(?<=<)\|begin_of_thought\|>|(?<=<)\|START_THINKING\|>|(?<=<)\|?(?:thinking|think)\|?>)"
    rf"|(?P<close>(?<=<)/\s*(?:{_THINK_NAMES})\s*>|(?<=\[)/THINK\]|(?<=◁)/think▷|"
    rf"(?<=<)\|end_of_thought\|>|(?<=<)\|END_THINKING\|>|(?<=<)\|?/(?:thinking|think)\|?>))",
)
_ESCAPED_TAG = re.compile(rf"&lt;(/?\s*(?:{_THINK_NAMES})\s*)&gt;", re.IGNORECASE)

_FINAL_CHANNEL = re.compile(r"<\|channel\|>\s*final\b[^<]{0,80}(?:<\|constrain\|>[^<]{0,40})?<\|message\|>")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_ANY_CHANNEL = re.compile(r"<\|channel\|>|<\|message\|>")
# The same with its special tokens stripped by a server: `analysisWe need …assistantfinalSELECT …`.
_BARE_FINAL = re.compile(r"assistant[\s|<>]{0,3}(?:channel[\s|<>]{0,4})?final(?:[\s|<>]{0,3}message[|>]{1,2})?")
_BARE_ANALYSIS = re.compile(r"\s*(?:assistant\s?)?(?:analysis|commentary)(?=[A-Z\"'`\n]|\s)")
_BARE_FINAL_START = re.compile(r"\s*(?:assistant)?final(?=SELECT\b|WITH\b|```|[A-Z{]|\n)")

# A turn's header at the very start.
_HEADER = re.compile(
    r"\s*(?:<\|im_start\|>(?:assistant)?|<\|start_header_id\|>\s*assistant\s*<\|end_header_id\|>|<start_of_turn>(?:model)?|"
    r"<\|start\|>assistant|<\|assistant\|>|<｜Assistant｜>|<｜begin▁of▁sentence｜>|<\|begin_of_text\|>|<\|startoftext\|>|<bos>|"
    r"<s>|\[/?INST\]|<\|CHATBOT_TOKEN\|>|<\|START_OF_TURN_TOKEN\|>|<\|START_RESPONSE\|>|<\|START_TEXT\|>|"
    r"<\|begin_of_solution\|>|<\|role_start\|>assistant<\|role_end\|>|<\|turn>(?:model)?|<\|start_of_role\|>assistant"
    r"<\|end_of_role\|>|<pad>|<unk>|<\|python_tag\|>|\ufeff)",
)
# What ends a turn. Whatever follows was never meant as part of this answer.
_END = re.compile(
    # `<|anything|>` is a special token in every family, but those that open an answer, a channel or a tool call.
    r"[<\[](?:(?<=<)(?:\|(?!(?:begin_of_|START_|channel\||message\||constrain\||python_tag))/?[A-Za-z]\w{0,40}\|>|\|>"
    r"|(?:im_end|eot_id|endoftext)\|?>|/s>|s>(?=\s|\Z)|(?:eos|bos|eod|eoa|eoh|eot|EOT|EOS|pad|unk|PAD|UNK)>"
    r"|end_of_turn>|start_of_turn>|turn\|>|\|turn>|seed:eos>|unused\d+>|extra_id_\d+>|reserved_\d+>|SPECIAL_\d+>"
    r"|｜[^<>\n]{1,40}｜>|fim_(?:prefix|middle|suffix)>|file_sep>|(?:END|EOF|STOP|DONE|EOQ|END_OF_\w{1,20})>|</?SYS>>)"
    r"|(?<=\[)(?:/?INST\]|EOS\]|DONE\]|/?SYS\]|end of text\]|\|\w{1,30}\|\]|(?:END|EOF|STOP)\](?=\s*\Z)))"
)
_PROMPT_ECHO = re.compile(
    r"\s*(?:<s>\s*|<bos>\s*|<\|begin_of_text\|>\s*|<｜begin▁of▁sentence｜>\s*)?(?:<\|(?:im_start\|>|start_header_id\|>\s*|"
    r"start_of_role\|>)(?:user|system)\b|<start_of_turn>user\b|<\|(?:user|system)\|>|<｜User｜>|\[INST\])"
)
_ASSISTANT_TURN = re.compile(
    r"<\|im_start\|>assistant\n?|<\|start_header_id\|>assistant<\|end_header_id\|>\s*|<\|assistant\|>\s*|\[/INST\]|"
    r"<\|start_of_role\|>assistant<\|end_of_role\|>|<start_of_turn>model\n?|<｜Assistant｜>"
)
# Granite and others say it in words.
_IN_WORDS = re.compile(
    r"\s*(?:Here(?:'s| is) my thought process|Here are my thoughts)\s*:.*?\bHere(?:'s| is) my (?:final )?response\s*:",
    re.DOTALL,
)


class Answer(NamedTuple):
    """What is left of a text when the reasoning is gone.

    Attributes:
        text: The answer.
        had_reasoning: Whether something was taken away as reasoning.
        unfinished: Whether the text ended within its reasoning: then there is no answer.
    """

    text: str
    had_reasoning: bool = False
    unfinished: bool = False


def strip_reasoning(text: str) -> Answer:
    """Return a text without its reasoning and without the tokens around a turn.

    A tag or token inside a quoted literal (`'</think>'`) is data and stays.
    """
    if "<" not in text and "[" not in text and "◁" not in text and "&lt;" not in text:
        return _strip_in_words(text)
    text = _unwrap_turn(text)
    channels = _strip_channels(text)
    if channels is not None:
        return channels
    if "&lt;" in text:
        text = _ESCAPED_TAG.sub(r"<\1>", text)
    answer = _strip_tags(text)
    if not answer.had_reasoning:
        answer = _strip_in_words(answer.text)
    return answer._replace(text=cut_at_end_token(_strip_headers(answer.text)))


def is_quoted(text: str, start: int, end: int) -> bool:
    """Say whether `text[start:end]` stands inside a literal, an inline code span or a comment of its line.

    An apostrophe between two letters (`don't`) is no quote. Only the line is looked at, at most 400 characters
    each side, so that a long text costs no more than a short one.
    """
    before = text[max(text.rfind("\n", 0, start) + 1, start - 400) : start]
    stop = text.find("\n", end, end + 400)
    after = text[end : stop if stop >= 0 else end + 400]
    if any(_odd(before, quote) and _odd(after, quote) for quote in ("'", '"', "`")):
        return True
    return _in_block_comment(text, start, end) or ("--" in before and _in_line_comment(text, before, end, after))


def _in_block_comment(text: str, start: int, end: int) -> bool:
    """Say whether a place stands between `/*` and `*/`, near both and in the same paragraph."""
    opening = text.rfind("/*", max(0, start - 400), start)
    if opening < 0 or text.find("*/", opening + 2, start) >= 0:
        return False
    closing = text.find("*/", end, end + 400)
    return closing >= 0 and "\n\n" not in text[opening:closing] and "/*" not in text[end:closing]


#: What stands on a line of SQL before its comment, or begins the next one; prose has dashes too.
_CODE_BEFORE = re.compile(r"\b(?:SELECT|FROM|WHERE|AND|OR|ON|JOIN|BY|AS|LIMIT)\b|[,()=]")
_CODE_BELOW = re.compile(r"\n[ \t]*(?:[A-Z]{2,}\b|[`\"(,)]|\w+\.\w|--)")


def _in_line_comment(text: str, before: str, end: int, after: str) -> bool:
    """Say whether a place stands amid a `--` comment: words follow on its line, and SQL on the next."""
    code = before.partition("--")[0]
    if not after.strip() or (code.strip() and _CODE_BEFORE.search(code) is None):
        return False
    return _CODE_BELOW.match(text, end + len(after)) is not None


def _odd(line: str, quote: str) -> bool:
    if quote not in line:
        return False
    if quote == "'":
        line = re.sub(r"\w'(?=\w)", "", line.replace("''", ""))
    elif quote == "`":
        line = re.sub("```+", "", line)  # a fence is no code span
    return line.count(quote) % 2 == 1


def _strip_headers(text: str) -> str:
    start = 0
    while match := _HEADER.match(text, start):
        start = match.end()
    return text[start:]


def _unwrap_turn(text: str) -> str:
    if _PROMPT_ECHO.match(text):
        # The prompt was sent back: the answer is the assistant's turn.
        turn = _ASSISTANT_TURN.search(text)
        if turn and text[turn.end() :].strip():
            text = text[turn.end() :]
    if "<|channel|>" in text:
        return text
    return _strip_headers(text)


def cut_at_end_token(text: str) -> str:
    """Cut a text before its first end-of-turn token that is not data; a token at the very start is dropped."""
    if "<" not in text and "[" not in text:
        return text
    start = 0
    for match in _END.finditer(text):
        if is_quoted(text, match.start(), match.end()):
            continue
        if text[start : match.start()].strip():
            return text[start : match.start()]
        start = match.end()
    return text[start:]


def _strip_channels(text: str) -> Answer | None:
    """Return the final channel of a harmony answer; None when the text has no channels."""
    if "<|" not in text or not _ANY_CHANNEL.search(text):
        return None
    last = _last_match(_FINAL_CHANNEL, text)
    if last is None:
        return _unmarked_channels(text)
    return Answer(cut_at_end_token(text[last.end() :]), last.start() > 0 and "analysis" in text[: last.start()])


def _unmarked_channels(text: str) -> Answer:
    """Judge channels of which none is `final`: analysis alone is no answer, a bare message is one."""
    match = _last_match(_CHANNEL, text)
    if match is None:
        return Answer(cut_at_end_token(_ANY_CHANNEL.split(text)[-1]))
    if match.group(1) == "commentary":
        # A tool call carries its arguments as JSON; that is an answer in words of the tool.
        return Answer(cut_at_end_token(text.rpartition("<|message|>")[2]), had_reasoning=True)
    bare = _last_match(_BARE_FINAL, text)
    if bare:
        return Answer(cut_at_end_token(text[bare.end() :]), had_reasoning=True)
    # `…<|end|>SELECT …`: the analysis ended, and the header of the answer is lost.
    headless = text.rpartition("<|end|>")[2].removeprefix("<|start|>assistant").removeprefix("<|message|>")
    if "<|end|>" in text and "<|channel|>" not in headless and headless.strip():
        return Answer(cut_at_end_token(headless), had_reasoning=True)
    return Answer("", had_reasoning=True, unfinished=True)


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = None
    for found in pattern.finditer(text):  # noqa: B007 - the last one is what we want
        pass
    return found


def _strip_in_words(text: str) -> Answer:
    """Take away reasoning that is marked by words alone (channels without their tokens, Granite's phrases)."""
    if "ssistant" in text or text.lstrip()[:10].startswith(("analysis", "commentary")):
        starts = _BARE_ANALYSIS.match(text)
        final = _last_match(_BARE_FINAL, text)
        if final and (starts or final.group() == "assistantfinal"):
            return Answer(text[final.end() :], had_reasoning=True)
        if starts and re.match(r"\s*(?:assistant)?analysis[A-Z]", text):
            return Answer("", had_reasoning=True, unfinished=True)
    if text.lstrip()[:5] == "final" and (start := _BARE_FINAL_START.match(text)):
        return Answer(text[start.end() :])
    if "Here" in text[:40] and (match := _IN_WORDS.match(text)):
        return Answer(text[match.end() :], had_reasoning=True)
    return Answer(text)


def _strip_tags(text: str) -> Answer:
    """Take away think blocks: opened and closed, closed without an opening, opened and never closed."""
    tags = [tag for tag in _TAG.finditer(text) if not is_quoted(text, tag.start(), tag.end())]
    if not tags:
        return Answer(text)
    visible: list[str] = []
    inside = False
    pairs = 0
    position = 0
    for tag in tags:
        if tag.lastgroup == "open":
            if not inside:
                visible.append(text[position : tag.start()])
            inside = True
            continue
        if not inside and not (tag is tags[-1] and _is_stray(text, tag, visible, position, pairs)):
            # Closed without an opening (the template had opened it): all before was reasoning.
            visible = []
        elif not inside:
            visible.append(text[position : tag.start()])
        inside = False
        pairs += 1
        position = tag.end()
    unfinished = inside and not "".join(visible).strip()
    if not inside:
        visible.append(text[position:])
    return Answer("".join(visible), had_reasoning=True, unfinished=unfinished)


_STARTS_AS_ANSWER = re.compile(r"\s*(?:```|SELECT\b|WITH\s+\w+\s+AS\b)", re.IGNORECASE)


def _is_stray(text: str, tag: re.Match[str], visible: list[str], position: int, pairs: int) -> bool:
    """Say whether a closing tag ends nothing: the answer stands before it, and nothing behind it."""
    if cut_at_end_token(text[tag.end() :]).strip():
        return False
    before = "".join(visible) + text[position : tag.start()]
    return bool(before.strip()) and (pairs > 0 or _STARTS_AS_ANSWER.match(before) is not None)
