"""Make a row's conversation: from a Jinja2 template, or from the row as it stands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from potstill.errors import ConfigError

Message = dict[str, Any]

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


class PromptError(ValueError):
    """Raised when one row has no valid conversation; its text is the row's reject reason."""


class Prompt:
    """How a row becomes `messages`.

    Args:
        template: A Jinja2 file that renders the user message, or None to send the row's own conversation.
        system: The system message, or None.
        messages_field: Without a template, the field that holds the conversation.

    Raises:
        ConfigError: If the template is missing or is not valid Jinja2.
    """

    def __init__(
        self, template: Path | None = None, system: str | None = None, messages_field: str = "messages"
    ) -> None:
        self.system = system
        self.messages_field = messages_field
        self._template = None if template is None else _load_template(template)

    @property
    def needs_messages(self) -> bool:
        """Whether the rows carry their conversation themselves."""
        return self._template is None

    def messages(self, row: Mapping[str, Any]) -> list[Message]:
        """Return the conversation of a row.

        Raises:
            PromptError: If the row lacks a field of the template, or its conversation is not one.
        """
        conversation = self._given(row) if self._template is None else [{"role": "user", "content": self._render(row)}]
        if self.system is None or conversation[0].get("role") in ("system", "developer"):
            return conversation
        return [{"role": "system", "content": self.system}, *conversation]

    def _render(self, row: Mapping[str, Any]) -> str:
        assert self._template is not None
        try:
            return self._template.render(row)
        except jinja2.UndefinedError as error:
            raise PromptError(f"missing field: {error.message}") from error
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, jinja2.TemplateError) as error:
            # A filter applied to a value of another type: the row's fault, or the template's, but never the run's.
            raise PromptError(f"the template cannot be rendered: {error}") from error

    def _given(self, row: Mapping[str, Any]) -> list[Message]:
        if self.messages_field not in row:
            raise PromptError(f"missing field: {self.messages_field!r} (no prompt.template is set)")
        return check_messages(row[self.messages_field], self.messages_field)


def check_messages(value: Any, name: str = "messages") -> list[Message]:
    """Return a conversation after checking its form; contents are passed on as they are.

    Raises:
        PromptError: If it is not a non-empty list of objects with a known role.
    """
    if not isinstance(value, list) or not value:
        raise PromptError(f"{name}: a non-empty list of messages was expected, found {type(value).__name__}")
    for place, message in enumerate(value):
        if not isinstance(message, dict):
            raise PromptError(f"{name}[{place}]: an object was expected, found {type(message).__name__}")
        if message.get("role") not in _ROLES:
            raise PromptError(f"{name}[{place}].role: found {message.get('role')!r}, allowed are {', '.join(_ROLES)}")
        if not isinstance(message.get("content"), str | list | None):
            raise PromptError(f"{name}[{place}].content: text was expected, found {type(message['content']).__name__}")
    return value


def _load_template(path: Path) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(path.parent),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # prompts are text for a model, not HTML
        keep_trailing_newline=False,
    )
    try:
        return environment.get_template(path.name)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"prompt.template {error.filename or path}: line {error.lineno}: {error.message}") from error
    except jinja2.TemplateNotFound as error:
        raise ConfigError(f"prompt.template {path}: {error.name} cannot be found") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompt.template {path}: cannot be read: {error}") from error
