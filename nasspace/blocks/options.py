"""Types of the options that blocks share: the values that a space or an architecture may hold."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field


def _odd(value: int) -> int:
    """Refuse an even kernel."""
    if value % 2 == 0:
        raise ValueError("must be odd, so that the padding is the same on both sides")
    return value


def _odd_or_none(value: int) -> int:
    """Refuse an even kernel, except 0."""
    return _odd(value) if value else value


def _fraction(value: Any) -> Any:
    """Read a fraction such as '1/3', as papers write it, as a number."""
    if not isinstance(value, str) or "/" not in value:
        return value
    try:
        return float(Fraction(value))
    except (ValueError, ZeroDivisionError):
        return value


def _skip_word(value: Any) -> Any:
    """Read true as 'identity' and false as 'none'."""
    return {True: "identity", False: "none"}[value] if isinstance(value, bool) else value


Kernel = Annotated[int, Field(ge=1, le=31), AfterValidator(_odd)]
KernelOrNone = Annotated[int, Field(ge=0, le=31), AfterValidator(_odd_or_none)]  # 0: there is no such layer
Window = Annotated[int, Field(ge=1, le=31)]
Padding = Annotated[int, Field(ge=0, le=15)]
Groups = Annotated[int, Field(ge=1, le=65536)]
Ratio = Annotated[float, BeforeValidator(_fraction), Field(gt=0, le=1)]
Share = Annotated[float, BeforeValidator(_fraction), Field(ge=0, le=1)]
Factor = Annotated[float, BeforeValidator(_fraction), Field(gt=0, le=64)]
Reduction = Annotated[int, Field(ge=1, le=1024)]
Width = Annotated[int, Field(ge=1, le=65536)]
Epsilon = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Repeats = Annotated[int, Field(ge=1, le=64)]
Activation = Literal["relu", "relu6", "hard_swish", "silu", "gelu", "elu", "sigmoid", "none"]
Gate = Literal["sigmoid", "hard_sigmoid"]
Norm = Literal["bn", "none"]
Skip = Annotated[Literal["identity", "pool", "none"], BeforeValidator(_skip_word)]
