"""The comparison policy: what it takes for a result to match gold, one knob per question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from potstill.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Policy:
    """How two results are compared. The defaults are the preset `strict`.

    Attributes:
        row_order: `auto` = the order counts where gold's outermost query has ORDER BY; `strict` = always; `ignore`.
        ties: Where the order counts: `free` = rows that tie on gold's sort keys may stand in any order; `strict`.
        duplicates: `bag` = the number of equal rows counts; `set` = it does not.
        column_order: `strict` = by position; `any` = some one permutation for all rows.
        extra_columns: True = columns that gold has not are passed over.
        empty_width: `compare` = two empty results must have the same number of columns; `ignore`.
        float_rel_tol: Relative tolerance where a real number takes part.
        float_abs_tol: Absolute tolerance where a real number takes part.
        numeric_text: True = text that reads as a number equals that number.
    """

    row_order: Literal["auto", "strict", "ignore"] = "auto"
    ties: Literal["free", "strict"] = "free"
    duplicates: Literal["bag", "set"] = "bag"
    column_order: Literal["strict", "any"] = "strict"
    extra_columns: bool = False
    empty_width: Literal["compare", "ignore"] = "compare"
    float_rel_tol: float = 1e-6
    float_abs_tol: float = 1e-9
    numeric_text: bool = False

    @property
    def exact_numbers(self) -> bool:
        """Whether real numbers must be equal to the last bit."""
        return self.float_rel_tol == 0 and self.float_abs_tol == 0

    def as_dict(self) -> dict[str, Any]:
        """Return the knobs by name, for the manifest."""
        return asdict(self)


#: What each preset stands for; a knob given beside it overrules it.
PRESETS: dict[str, Policy] = {
    "strict": Policy(),
    # BIRD's evaluation.py: set(predicted) == set(gold), columns by position, numbers as Python compares them.
    "bird": Policy(row_order="ignore", duplicates="set", empty_width="ignore", float_rel_tol=0.0, float_abs_tol=0.0),
    # test-suite-sql-eval's exec_eval.py: a bag, any one permutation of the columns, order as gold asks, ties not free.
    "spider": Policy(ties="strict", column_order="any", empty_width="ignore", float_rel_tol=0.0, float_abs_tol=0.0),
}


def make_policy(settings: str | Mapping[str, Any] | None) -> Policy:
    """Return the policy that a config asks for.

    Args:
        settings: The name of a preset, or knobs with an optional `preset`, or nothing for `strict`.

    Raises:
        ConfigError: For a preset or a knob that there is not.
    """
    knobs = {"preset": settings} if isinstance(settings, str) else dict(settings or {})
    preset = knobs.pop("preset", None) or "strict"
    if preset not in PRESETS:
        raise ConfigError(f"execute.comparison: no preset {preset!r}; presets are {', '.join(PRESETS)}")
    known = [field.name for field in fields(Policy)]
    for name in knobs:
        if name not in known:
            raise ConfigError(f"execute.comparison: no knob {name!r}; knobs are preset, {', '.join(known)}")
    chosen = {name: value for name, value in knobs.items() if value is not None}
    for name in ("float_rel_tol", "float_abs_tol"):
        if not float(chosen.get(name, 0)) >= 0:
            raise ConfigError(f"execute.comparison.{name}: {chosen[name]} is no tolerance; give a number of 0 or more")
    return Policy(**{**PRESETS[preset].as_dict(), **chosen})
