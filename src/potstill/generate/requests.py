"""From rows to requests: the body that is sent, and the key under which its answer is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import orjson

from potstill.answers.key import KeyMaker
from potstill.config.model import LIMIT_NAMES, Model
from potstill.prompts import PromptError, check_messages
from potstill.records import Row, canonical_json
from potstill.rows import dumps

#: What a row's overrides can't change: they belong to the model, the conversation or the wire.
_FIXED = frozenset({"model", "messages", "stream", "stream_options", "n"})
_KEPT_RECIPES = 256


class BadRowError(ValueError):
    """Raised when a row cannot be made a request; its text is the reason."""


@dataclass(slots=True, eq=False)
class Job:
    """What is asked of the teacher: one row, for one sample or (with the server's `n`) for several.

    Attributes:
        row: The input row.
        slots: For each sample, its place in the outputs.
        samples: The sample indexes.
        keys: For each sample, its answer's key.
        recipe: How its body is made.
        rung: Which limit of the ladder is asked for.
        attempts: How many attempts were spent; rate limits and outages spend none.
        sends: How many requests were sent.
        in_flight_s: The time in flight over all of them.
        waits: Rate limits in a row.
        usage: Tokens that were paid without an answer.
        repair: The answer that did not fit the schema, with the reason, when it is to be mended.
        resent: Whether it was already sent once more for a connection that was closed while idle.
    """

    row: Row
    slots: tuple[int, ...]
    samples: tuple[int, ...]
    keys: list[bytes]
    recipe: Recipe
    rung: int = 0
    attempts: int = 0
    sends: int = 0
    in_flight_s: float = 0.0
    waits: int = 0
    usage: dict[str, Any] | None = None
    repair: tuple[str, str] | None = None
    resent: bool = False

    @property
    def limit(self) -> int | None:
        """The longest answer that is asked for now."""
        return self.recipe.limits[self.rung]

    def split(self, places: Sequence[int]) -> Job:
        """Return a job for some of its samples only."""
        pick = list(places)
        return Job(
            self.row,
            tuple(self.slots[place] for place in pick),
            tuple(self.samples[place] for place in pick),
            [self.keys[place] for place in pick],
            self.recipe,
            self.rung,
            self.attempts,
            self.sends,
            self.in_flight_s,
        )

    def body(self) -> bytes:
        """Return the JSON of the request."""
        return self.recipe.body(self)


class Recipe:
    """How the requests of one set of parameters are made.

    Args:
        parameters: The body without messages and limit.
        limit: The longest answer.
        limit_name: The parameter that carries it.
        ladder: Longer limits for answers that were cut off, in order.
    """

    def __init__(
        self, parameters: Mapping[str, Any], limit: int | None, limit_name: str, ladder: Sequence[int] = ()
    ) -> None:
        self.parameters = dict(parameters)
        self.limits: list[int | None] = [limit]
        if limit is not None:
            self.limits += [rung for rung in sorted(ladder) if rung > limit]
        self._keys = KeyMaker(self.parameters)
        self._limit_name = limit_name
        self._seed = self.parameters.get("seed")
        fixed = {name: value for name, value in self.parameters.items() if name != "seed"}
        if fixed.get("stream") and "stream_options" not in fixed:
            fixed["stream_options"] = {"include_usage": True}
        self._start = dumps(fixed).rstrip(b"\n")[:-1] + b',"messages":'

    def keys(self, messages: Any, samples: tuple[int, ...]) -> list[bytes]:
        """Return the key of each sample of a conversation."""
        return self._keys.keys(messages, samples)

    def body(self, job: Job) -> bytes:
        """Return the JSON of a job's request."""
        messages = job.row["messages"]
        if job.repair is not None:
            messages = [*messages, *_repair_messages(*job.repair)]
        end: dict[str, Any] = {}
        if job.limit is not None:
            end[self._limit_name] = job.limit
        if self._seed is not None:
            # The same seed would give the same answer for each sample.
            end["seed"] = self._seed + job.samples[0]
        if len(job.samples) > 1:
            end["n"] = len(job.samples)
        tail = b"," + orjson.dumps(end)[1:] if end else b"}"
        return self._start + dumps(messages).rstrip(b"\n") + tail


def _repair_messages(answer: str, problem: str) -> list[dict[str, str]]:
    request = f"Your answer is not valid: {problem}. Send it again, corrected: the JSON only, nothing around it."
    return [{"role": "assistant", "content": answer}, {"role": "user", "content": request}]


@dataclass
class RequestMaker:
    """Makes the jobs of rows.

    Attributes:
        model: The teacher.
        ladder: Longer limits for answers that were cut off.
        profile_field: The row field with overrides of parameters: an object, or the name of one of the model
            file's `decode_profiles`.
        body_fields: Row fields that go into the body under their own names, such as `tools`.
    """

    model: Model
    ladder: Sequence[int] = ()
    profile_field: str = "decode_profile"
    body_fields: Sequence[str] = ()
    _plain: Recipe = field(init=False)

    def __post_init__(self) -> None:
        self._plain = self._recipe({})
        self._cached = lru_cache(_KEPT_RECIPES)(lambda text: self._recipe(orjson.loads(text)))

    def job(self, row: Row, samples: tuple[int, ...], first_slot: int) -> Job:
        """Return the job of a row.

        Raises:
            BadRowError: If the row has no valid conversation or names an unknown profile.
        """
        if "messages" not in row:
            raise BadRowError(str(row.get("bad_row") or "missing field: 'messages'"))
        try:
            messages = check_messages(row["messages"])
            recipe = self._recipe_of(row)
            keys = recipe.keys(messages, samples)
        except (PromptError, ValueError, RecursionError) as error:
            raise BadRowError(str(error)) from error
        return Job(row, tuple(range(first_slot, first_slot + len(samples))), samples, keys, recipe)

    def _recipe_of(self, row: Row) -> Recipe:
        overrides = self._overrides(row)
        if not overrides:
            return self._plain
        recipe: Recipe = self._cached(canonical_json(overrides))
        return recipe

    def _overrides(self, row: Row) -> dict[str, Any]:
        profile = row.get(self.profile_field)
        fields = {name: row[name] for name in self.body_fields if row.get(name) is not None}
        if profile is None:
            return fields
        if isinstance(profile, str):
            known = self.model.decode_profiles
            if profile not in known:
                allowed = ", ".join(known) or "none: the model file has no decode_profiles"
                raise BadRowError(f"{self.profile_field}: unknown profile {profile!r}; known are {allowed}")
            profile = known[profile]
        if not isinstance(profile, dict):
            raise BadRowError(
                f"{self.profile_field}: found {type(profile).__name__}, allowed are an object or a profile's name"
            )
        if fixed := sorted(profile.keys() & _FIXED):
            raise BadRowError(f"{self.profile_field}: {fixed[0]} can't be changed for a row")
        return {**fields, **profile}

    def _recipe(self, overrides: dict[str, Any]) -> Recipe:
        limit, name = self.model.max_tokens, self.model.limit_name
        for given in LIMIT_NAMES:
            if given in overrides:
                limit, name = overrides[given], given
        changes = {key: value for key, value in overrides.items() if key not in LIMIT_NAMES}
        return Recipe({**self.model.parameters, **changes}, limit, name, self.ladder)
