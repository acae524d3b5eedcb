"""Namespaces with a type: what is decoded into it, what does not fit, and who does it."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import uuid
from collections.abc import Callable
from typing import Any, NotRequired, TypedDict

import msgspec
import pydantic
import pytest

from shmcache import Cache, DecodeError, typed


@dataclasses.dataclass
class Address:
    """A part of a User."""

    city: str
    lines: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class User:
    """A dataclass with others in it."""

    id: int
    name: str
    address: Address | None = None


class Row(TypedDict):
    """A dict with known fields."""

    id: int
    note: NotRequired[str]


class Point(msgspec.Struct):
    """A msgspec.Struct."""

    x: int
    y: float = 0.0


class Colour(enum.Enum):
    """A field that no codec knows by itself."""

    RED = "red"


class Item(pydantic.BaseModel):
    """A model within a model."""

    price: decimal.Decimal
    made: datetime.datetime | None = None


class Model(pydantic.BaseModel):
    """A pydantic model with what models have: aliases, nesting, validation, computed fields."""

    model_config = pydantic.ConfigDict(extra="forbid")

    id: int = pydantic.Field(alias="ID", gt=0)
    items: list[Item] = []
    key: uuid.UUID = uuid.UUID(int=5)

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> decimal.Decimal:
        """Never stored."""
        return sum((item.price for item in self.items), decimal.Decimal(0))


class Painted(pydantic.BaseModel):
    """A model that only its JSON form can be stored of."""

    colour: Colour
    url: pydantic.HttpUrl


NOON = datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.UTC)
MODEL = Model(ID=7, items=[Item(price=decimal.Decimal("1.50"), made=NOON)])

CASES: dict[str, tuple[Any, Any, list[Any]]] = {
    "dataclass": (
        User,
        User(1, "Ada", Address("London", ["a"])),
        [5, "text", {"id": "x", "name": "y"}, {"id": 1}, [1]],
    ),
    "TypedDict": (Row, {"id": 1, "note": "n"}, [5, {"note": "n"}, {"id": "x"}, None]),
    "model": (Model, MODEL, [5, {"id": "x"}, {"id": 0}, {"id": 1, "other": 1}, []]),
    "painted": (
        Painted,
        Painted(colour=Colour.RED, url=pydantic.HttpUrl("http://a.b/c")),
        [{"colour": "blue", "url": "http://a.b/c"}],
    ),
    "models": (dict[str, list[Model]], {"a": [MODEL]}, [5, [{"id": 1}], {"a": [{"id": "x"}]}]),
    "model or None": (Model | None, MODEL, [5, {"id": "x"}]),
    "list": (list[int], [1, 2], [5, ["x"], {"a": 1}]),
    "dict": (dict[str, int], {"a": 1}, [5, {"a": "x"}]),
    "tuple": (tuple[int, str], (1, "a"), [5, [1], [1, 2]]),
    "optional": (User | None, None, [5, {"id": "x"}]),
    "int": (int, 5, ["text", [1], 1.5]),
    "str": (str, "text", [5, b"bytes", ["a"]]),
    "Struct": (Point, Point(1, 2.5), [5, {"x": "a"}, {"y": 1.0}]),
}


@pytest.mark.parametrize("codec", ["msgpack", "json", "msgspec", "pickle"])
@pytest.mark.parametrize("case", CASES)
def test_values_are_decoded_into_the_type(
    open_cache: Callable[..., Cache], case: str, codec: str
) -> None:
    kind, value, _ = CASES[case]
    users = open_cache(codec=codec, local_entries=4).namespace("users", kind)
    users["a"] = value
    assert users["a"] == value and type(users["a"]) is type(value)
    assert users.get_many(["a"]) == {"a": value} and list(users.values()) == [value]
    assert users.get("absent") is None


@pytest.mark.parametrize("case", CASES)
def test_data_that_does_not_fit_is_a_decode_error(cache: Cache, case: str) -> None:
    kind, _, misfits = CASES[case]
    plain, users = cache.namespace("users"), cache.namespace("users", kind)
    for misfit in misfits:
        plain["a"] = misfit
        with pytest.raises(DecodeError):
            users.get("a")
        with pytest.raises(DecodeError):
            users["a"]
    assert "a" in users


@pytest.mark.parametrize("case", [case for case in CASES if case != "Struct"])
def test_without_msgspec_the_same(cache: Cache, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typed, "_msgspec", lambda: None)
    kind, value, misfits = CASES[case]
    plain, users = cache.namespace("users"), cache.namespace("users", kind)
    users["a"] = value
    assert users["a"] == value and type(users["a"]) is type(value)
    for misfit in misfits:
        plain["a"] = misfit
        with pytest.raises(DecodeError):
            users.get("a")


def test_without_msgspec_a_struct_is_refused(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typed, "_msgspec", lambda: None)
    with pytest.raises(TypeError, match="msgspec is not installed"):
        cache.namespace("points", Point)


def test_a_handle_without_a_type_reads_plain_containers(cache: Cache) -> None:
    cache.namespace("users", User)["a"] = User(1, "Ada", Address("London"))
    assert cache.namespace("users")["a"] == {
        "id": 1,
        "name": "Ada",
        "address": {"city": "London", "lines": []},
    }


def test_what_a_handle_without_a_type_stored_is_decoded_into_it(cache: Cache) -> None:
    plain = cache.namespace("users")
    plain["a"] = {"id": 1, "name": "Ada"}
    assert cache.namespace("users", User)["a"] == User(1, "Ada")
    plain["b"] = (1, "a")  # an extension type of msgpack
    assert cache.namespace("users", tuple[int, str])["b"] == (1, "a")
    plain["c"] = {"id": 2, "name": "Bo", "address": {"city": "X", "lines": ("p", "q")}}
    assert cache.namespace("users", User)["c"] == User(2, "Bo", Address("X", ["p", "q"]))


def test_a_field_is_read_without_building_the_object(cache: Cache) -> None:
    users = cache.namespace("users", User)
    users["a"] = User(1, "Ada", Address("London"))
    assert users.get_field("a", "address", "city") == "London"


def test_a_pydantic_model_is_stored_by_its_fields(cache: Cache) -> None:
    plain, models = cache.namespace("models"), cache.namespace("models", Model)
    models["a"] = MODEL
    assert plain["a"] == {
        "id": 7,
        "items": [{"price": decimal.Decimal("1.50"), "made": NOON}],
        "key": uuid.UUID(int=5),
    }
    assert models["a"].total == decimal.Decimal("1.50")
    assert models.get_field("a", "items", 0, "price") == decimal.Decimal("1.50")
    plain["b"] = {"ID": 8}  # by alias, as the outside world has it
    assert models["b"] == Model(ID=8)


def test_what_does_not_fit_a_model_is_computed_anew(cache: Cache) -> None:
    plain, models = cache.namespace("models"), cache.namespace("models", Model)
    plain["a"] = {"id": -1}
    with pytest.raises(DecodeError, match="Model"):
        models.get("a")
    assert models.get_or_init("a", lambda: MODEL) is MODEL
    assert models["a"] == MODEL
