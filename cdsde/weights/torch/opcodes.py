"""Unpickling of plain data, one operation after another.

Python's own unpickler calls what a file names, and allocates what a file announces. This one knows
the operations that build numbers, strings, lists, dicts, sets and tuples. It calls only what its
caller hands it, allocates only what the file really holds, and takes only plain keys, because
hashing nested tuples can take longer than anyone waits.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable
from typing import IO, Any

CHUNK = 2**20  # bytes read at once, and the longest line of text
OPERATIONS = 10**6  # of one pickle; a network of a thousand tensors has 120 000
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set, "EMPTY_TUPLE": tuple}
# Operations whose argument is the value.
VALUES = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
VALUES |= {"STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
VALUES |= {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
KEYS = (str, int, float, bytes, bool, type(None))


class RefusedError(Exception):
    """The file asks for something that is not plain data."""


class Guarded:
    """A stream whose reads allocate only what is there, whatever is asked for."""

    def __init__(self, file: IO[bytes]):
        self._file = file

    def read(self, count: int) -> bytes:
        """At most `count` bytes."""
        if count <= CHUNK:
            return self._file.read(count)
        parts = []
        while count > 0 and (part := self._file.read(min(count, CHUNK))):
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def readline(self) -> bytes:
        """A line of at most `CHUNK` bytes."""
        return self._file.readline(CHUNK)


def load(
    file: IO[bytes],
    find: Callable[[str, str], Any],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The content of a pickle of plain data; the stream is left right behind it.

    Args:
      file: a binary stream.
      find: `(module, name) -> callable` of a name that the file calls; it raises `RefusedError` for
        a name that it does not know. What the callable returns may have a method `build(state)`.
      persistent: what a reference to outside the pickle stands for; None refuses them.

    Raises:
      RefusedError: the file asks for more than plain data.
      Exception: the file is damaged. Of which class depends on the damage.
    """
    return _Machine(find, persistent).run(file)


class _Machine:
    """Stack, marks and memo of one pickle."""

    def __init__(self, find, persistent):
        self.find, self.persistent = find, persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: IO[bytes]) -> Any:
        operations = pickletools.genops(Guarded(file))  # pyright: ignore[reportArgumentType]
        for count, (opcode, argument, _) in enumerate(operations):
            if count >= OPERATIONS:
                raise ValueError(f"its pickle has more than {OPERATIONS:,} operations")
            self.step(opcode.name, argument)
        (content,) = self.stack
        return content

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        if len(items) != len(self.stack) - start:
            raise ValueError("its stack runs empty")
        del self.stack[start:]
        return items

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in VALUES:
            stack.append(argument)
        elif name in ("BINGET", "GET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINPUT", "PUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in TUPLES:
            items = [stack.pop() for _ in range(TUPLES[name])]
            stack.append(tuple(reversed(items)))
        elif name == "TUPLE":
            stack.append(tuple(self.since_mark()))
        elif name == "LIST":
            stack.append(self.since_mark())
        elif name == "APPEND":
            item = stack.pop()
            _as(stack[-1], list).append(item)
        elif name == "APPENDS":
            items = self.since_mark()
            _as(stack[-1], list).extend(items)
        elif name == "ADDITEMS":
            items = self.since_mark()
            _as(stack[-1], set).update(map(_key, items))
        elif name == "FROZENSET":
            stack.append(frozenset(map(_key, self.since_mark())))
        elif name == "DICT":
            items = self.since_mark()
            stack.append(_set_items({}, items))
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _set_items(_as(stack[-1], dict), [key, value])
        elif name == "SETITEMS":
            items = self.since_mark()
            _set_items(_as(stack[-1], dict), items)
        elif name == "GLOBAL":
            stack.append(self.find(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = _as(stack.pop(), str), _as(stack.pop(), str)
            stack.append(self.find(module, attribute))
        elif name in ("REDUCE", "NEWOBJ"):
            # Of all that can lie here only what `find` returned is callable.
            arguments, called = _as(stack.pop(), tuple), stack.pop()
            stack.append(called(*arguments))
        elif name == "BUILD":
            state, built = stack.pop(), stack[-1]
            # An OrderedDict may carry attributes, such as the version of a state dict.
            if not isinstance(built, dict):
                if not hasattr(built, "build"):
                    raise RefusedError(f"a state of a {type(built).__name__}")
                built.build(state)
        elif name in ("BINPERSID", "PERSID"):
            if self.persistent is None:
                raise RefusedError("a reference to outside the file")
            pid = stack.pop() if name == "BINPERSID" else argument
            stack.append(self.persistent(pid))
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self.since_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise RefusedError(f"the pickle operation {name}")


def dict_of(pairs: Iterable[tuple[Any, Any]] = ()) -> dict:
    """A dict of pairs with plain keys, for names that build one, such as OrderedDict."""
    return {_key(key): value for key, value in pairs}


def _set_items(target: dict, items: list[Any]) -> dict:
    if len(items) % 2:
        raise ValueError("a key has no value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[_key(key)] = value
    return target


def _key(key: Any) -> Any:
    if type(key) not in KEYS:
        raise RefusedError(f"a {type(key).__name__} as a key")
    return key


def _as(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"a {type(value).__name__} stands where a {kind.__name__} must stand")
    return value
