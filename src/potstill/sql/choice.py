"""Which of several statements is the answer: what the words around them say, and which is only a part of another."""

from __future__ import annotations

import re

#: Words that call the statement behind them something else than the answer.
_DEMOTES = re.compile(
    r"\b(?:alternativ\w*|breakdown|sub-?quer(?:y|ies)|inner query|verify|to test|to check|sanity check|incorrect|wrong|"
    r"instead of|don't use|do not use|avoid|would fail|original query|your query|first attempt|not recommended|"
    r"you can also|you could also|could also|if you (?:also |only |want|need|prefer|would|meant?|intended)|tip|bonus|variation|"
    r"bad|common (?:mistake|error|pitfall)|slower|less efficient|inefficient|anti-?pattern|"
    r"if [^\n:]{1,60} (?:is|are|was|were) (?:meant|intended|needed|required|wanted|desired|preferred)|"
    r"if the (?:question|intent|intention|requirement) (?:is|was|means|meant)|optional(?:ly)?|equivalent|"
    r"create an index|explanation of|for (?:reference|comparison)|in general|general form|this part|explained|"
    r"break(?:s|ing)? (?:it |this |them |the query )?down|how it works|to (?:confirm|debug|inspect|see)|double.check|"
    r"test (?:it|the query|with)|before running)\b|"
    r"[❌✗✘🚫]|不要写|不推荐|常见错误|备选|另一种|也可以|或者|验证|错误的|不要使用|原始|子查询|如果(?:您|你)?(?:需要|想)",
    re.IGNORECASE,
)
#: A verdict on the statement before, not on the one behind: `This is incorrect because …`.
_BACKWARD = re.compile(
    r"\b(?:this|that|it|which|(?:the )?(?:above|previous|first)(?: query| one| version)?)"
    r"(?:'s|’s| is| was| would be| looks| seems)(?: not)? (?:incorrect|wrong|not recommended)\b(?!\s*[:：]\s*\Z)",
    re.IGNORECASE,
)
_DIALECT = re.compile(
    r"\b(?:SQL Server|T-SQL|MySQL|MariaDB|Postgre(?:s|SQL)|Oracle|BigQuery|Snowflake|SQLite|DuckDB)\b", re.IGNORECASE
)
#: How a text names the dialects that sqlglot names otherwise.
_OWN_NAMES = {"tsql": "sql server", "postgresql": "postgres"}
#: Words that call it the answer after all.
_PROMOTES = re.compile(
    r"\b(?:correct|corrected|fixed|should be|final|actual|right|revised|updated|improved|simplified|better|so use|"
    r"wait|actually|sorry|(?<!common )mistake|answer)\b|正确|修正|更正|最终|应该|改为|更新|不对",
    re.IGNORECASE,
)
_CORRECTION = re.compile(
    r"\b(?:wait|actually|correction|corrected|sorry|mistake|should be|should have been|instead|oops|"
    r"on second thought)\b|更正|应该是|不对|修正|改为|应为|抱歉",
    re.IGNORECASE,
)
_FINAL = re.compile(
    r"^[ \t#>*_-]*(?:(?:the|my|so,?)\s+)*(?:final|corrected|revised)\s+"
    r"(?:answer|sql|query|sql\s+query|version|output|statement)\b[^\n]{0,60}"
    r"|^[ \t#>*_-]*(?:最终|最后|修正后)(?:的)?(?:答案|SQL|查询|语句|结果|版本)[^\n]{0,30}",
    re.IGNORECASE | re.MULTILINE,
)
_REFUSAL = re.compile(
    r"\b(?:I\s+(?:can(?:'|’)?t|cannot|can\s+not|am\s+(?:unable|not able)|won(?:'|’)t|will\s+not|must\s+decline|"
    r"do\s+not\s+have)|I(?:'|’)m\s+(?:sorry|unable|afraid|not\s+able)|sorry,?\s+(?:but\s+)?I|"
    r"unable\s+to\s+(?:generate|answer|provide|write|help|create)|as\s+an\s+AI|not\s+possible\s+to\s+answer|"
    r"cannot\s+be\s+(?:answered|generated|determined)|apologi[sz]e)\b"
    r"|抱歉|对不起|无法|不能(?:回答|生成|提供|帮)|很遗憾|我没有办法|作为(?:一个)?(?:AI|人工智能)|拒绝",
    re.IGNORECASE,
)
#: Words right before or behind a statement that give it as an answer after all: `but the query is …`, `… should work`.
_OFFERED = re.compile(
    r"(?:\b(?:is|be|use|try|following|follows|instead)|[是为]|使用|可用)[\s`\"'*“‘]*\Z", re.IGNORECASE
)
_OFFERED_BEHIND = re.compile(
    r"[\s`\"'*”’;.]*(?:(?:should|would|will|may|might|could)\s+)?(?:works?|do(?:es)? (?:it|that|the job)|helps?|answers?)\b",
    re.IGNORECASE,
)
_SENTENCE_ENDS = re.compile(r"[.!?](?:\s|\Z)|[。！？]")
#: Words of a sentence that speaks of a statement as one that cannot be.
_NEGATED = re.compile(
    r"\b(?:not|n't|n’t|never) (?:be )?(?:possible|permitted|allowed|supported|available|work)\b|\bif (?:it|they|there) (?:had|were|was)\b"
    r"|\b(?:would|will) (?:fail|need|require)\b|\bfails\b|\brejected\b|报错|不可行|行不通",
    re.IGNORECASE,
)
_PARAGRAPHS = re.compile(r"\n\s*\n(?=\S)")


def is_demoted(intro: str, dialect: str) -> bool:
    """Say whether the words before a statement call it something else than the answer, or name another dialect."""
    last = _PARAGRAPHS.split(intro.strip()[-300:])[-1][-200:]
    last = _BACKWARD.sub("", last)
    if _DEMOTES.search(last) is not None and _PROMOTES.search(last) is None:
        return True
    return _DIALECT.search(last) is not None and _OWN_NAMES.get(dialect, dialect) not in last.lower()


def is_promoted(intro: str) -> bool:
    """Say whether the words before a statement call it the better one."""
    return _PROMOTES.search(intro) is not None


def is_part(sql: str, earlier: list[str], intro: str) -> bool:
    """Say whether a query repeats a part of an earlier one: then it explains, it does not answer.

    A beginning of the earlier one may be its correction instead ("no filter is needed"), if the words say so.
    """
    inner = _squeeze(sql)
    wholes = [_squeeze(other) for other in earlier]
    if any(f"({inner})" in whole for whole in wholes):
        return True
    return any(inner in whole and inner != whole for whole in wholes) and not is_promoted(intro)


def _squeeze(sql: str) -> str:
    return re.sub(r"\s+", "", sql[:20_000]).lower()


def find_correction(text: str) -> int | None:
    """Return where a text says that what went before was wrong, or None."""
    match = _CORRECTION.search(text)
    return match.start() if match else None


def find_final(text: str) -> int | None:
    """Return where a text last announces its final answer, or None."""
    place = None
    for match in _FINAL.finditer(text):
        place = match.start()
    return place


def is_refused(text: str, start: int, end: int) -> bool:
    """Say whether a statement amid a sentence is only spoken of where the task is declined: `I cannot run SELECT …`."""
    first = max(text.rfind("\n\n", 0, start), start - 400, 0)
    stop = text.find("\n\n", end, end + 200)
    before, behind = text[first:start], text[end : stop if stop >= 0 else end + 200]
    if _REFUSAL.search(before) is None and _REFUSAL.search(behind) is None:
        return False
    # In the sentence itself: `Sorry, I forgot the filter. SELECT …` declines nothing.
    lead, tail = _SENTENCE_ENDS.split(before)[-1], _SENTENCE_ENDS.split(behind)[0]
    if not (_REFUSAL.search(lead) or _NEGATED.search(lead) or _NEGATED.search(tail)):
        return False
    return _OFFERED.search(before[-40:]) is None and _OFFERED_BEHIND.match(behind) is None


def is_refusal(text: str) -> bool:
    """Say whether a text without SQL declines the task, in English or Chinese."""
    return _REFUSAL.search(text[:4000]) is not None
