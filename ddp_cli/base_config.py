"""The base class of everything configurable: frozen, validated, and with one-line errors."""

from __future__ import annotations

from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ddp_cli.errors import ConfigError, UnknownNameError


class BaseConfig(BaseModel):
    """Immutable values. A fault raises a ConfigError that names the value, what is valid and the next step.

    What is valid is the `description` of the field, where it has one; a validator may also raise its own ConfigError.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    key_kind: ClassVar[str] = "setting"
    """What a key is called in messages."""
    default_hint: ClassVar[str] = "Change it with --set."
    """The next step for fields without a description."""
    general_hint: ClassVar[str] = "Change one of them with --set."
    """The next step for values that contradict each other."""
    names_place: ClassVar[bool] = False
    """Whether errors of values inside this one begin with the place of that value."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_booleans_as_numbers(cls, values: Any) -> Any:
        """Pydantic takes true for 1."""
        for key, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, bool) and key in cls.model_fields:
                annotation = cls.model_fields[key].annotation
                kinds = {annotation, *get_args(annotation)}
                if {int, float} & kinds and bool not in kinds:
                    raise ConfigError(f"{key} = {value!r}: expected a number.", cls.default_hint)
        return values

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as e:
            raise _to_config_error(type(self), e) from None


def _to_config_error(config: type[BaseConfig], error: ValidationError) -> ConfigError:
    errors = error.errors()
    fields = {field.alias or name: field for name, field in config.model_fields.items()}
    # A misspelt key that is required is reported as unknown (with a close match), not as missing.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    location = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        return UnknownNameError(config.key_kind, location[0], sorted(fields))
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        named = config.names_place and location
        return ConfigError(f"{'.'.join(location)}: {cause.message}", cause.hint) if named else cause
    if first["type"] == "literal_error" and len(location) == 1:
        valid_values = list(map(str, get_args(fields[location[0]].annotation)))
        return UnknownNameError(location[0], str(first["input"]), valid_values)
    message = first["msg"].removeprefix("Value error, ")
    if not location:
        return ConfigError(f"{message}.", config.general_hint)
    message = message[0].lower() + message[1:]
    valid = fields[location[0]].description
    hint = f"Valid: {valid}." if valid else config.default_hint
    if first["type"] == "missing" and len(location) > 1:  # a part of a value, such as the second of two numbers
        return ConfigError(f"{location[0]} = {first['input']!r}: {message}.", hint)
    if first["type"] == "missing":
        return ConfigError(f"the {config.key_kind} '{location[0]}' is missing.", hint)
    if location[-1] == "[key]":
        return ConfigError(f"{'.'.join(location[:-2])}: invalid key '{location[-2]}': {message}.", hint)
    return ConfigError(f"{'.'.join(location)} = {first['input']!r}: {message}.", hint)
