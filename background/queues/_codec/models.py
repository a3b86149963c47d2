"""Pydantic's models, by their own methods; pydantic is not imported where nobody else does."""

from __future__ import annotations

import sys
from typing import Any


def is_model(kind: Any) -> bool:
    pydantic: Any = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)


def dump(model: Any) -> Any:
    """Return a model as plain data, under its fields' names, whatever their aliases."""
    return model.model_dump(mode="json", by_alias=False, round_trip=True, warnings=False)


def load(kind: Any, value: Any) -> Any:
    """Return the model that `dump` was given.

    Raises `ValueError`, which says what is wrong without quoting the data, as pydantic's own does.
    """
    pydantic: Any = sys.modules["pydantic"]
    try:
        return kind.model_validate(value, by_name=True)
    except pydantic.ValidationError as error:
        raise ValueError("; ".join(map(_line, error.errors()))) from None


def _line(error: dict[str, Any]) -> str:
    where = ".".join(map(str, error["loc"]))
    return f"{where}: {error['msg']}" if where else str(error["msg"])
