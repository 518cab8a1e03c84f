"""Unpickling of plain data, one operation after another.

Python's own unpickler calls what a file names, and allocates what a file announces. This one knows
the operations that build numbers, strings, lists, dicts, sets and tuples. It calls only what its
caller hands it, allocates only what the file really holds, and takes only plain keys, because
hashing nested tuples can take longer than anyone waits.

A pickle can mention one object many times. So whatever grows with an object is paid from one
`Work` for each file, and what the whole content would be, written out, is measured at the end.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import IO, Any

CHUNK = 2**20  # bytes read at once, and the longest line of text
# Operations of the pickles of one file, with what they call; each takes about a microsecond. A
# tensor costs 50 in a state dict, and 250 in a snapshot of EDM with all that its module remembers.
# 6 000 of ADM's largest network, its average and its optimizer cost 300 000, EDM's 600 150 000.
WORK = 5 * 10**5
CALL = 4  # operations that a call is worth, beside those for what it is given
ITEMS = 4  # items of a list or dict that a call goes through in the time of an operation
# The same of what Python's collector of garbage looks through; a set has the size of four lists.
COLLECTED = {"EMPTY_DICT": 1, "EMPTY_LIST": 1, "EMPTY_SET": 4, "FROZENSET": 4}
PROBES = 256  # places of a dict that are looked at in the time of an operation
LONGEST_KEY = 512  # characters; of a parameter's name seldom 100
BITS = 127  # of a whole number; the mark of PyTorch's old format has 77
DEPTH = 100  # of lists in lists; EDM's snapshots have 25
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set, "EMPTY_TUPLE": tuple}
# Operations whose argument is the value.
INTEGERS = {"INT", "LONG", "LONG1", "LONG4"}
VALUES = {"BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"}
VALUES |= {"STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
VALUES |= {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
KEYS = (str, int, float, bytes, bool, type(None))
CONTAINERS = (dict, list, tuple, set, frozenset)
TOO_LONG = "a whole number is longer than any is needed"
_NOTHING = object()  # a place of the memo that the file has not filled


class RefusedError(Exception):
    """The file asks for something that is not plain data."""


class Work:
    """What the pickles of one file may still cost, in operations."""

    def __init__(self, limit: int = WORK):
        self.left = limit

    def spend(self, operations: int) -> None:
        """Pays for some operations.

        Raises:
          ValueError: the file has spent all.
        """
        self.left -= operations
        if self.left < 0:
            raise ValueError(f"its pickle takes more than {WORK:,} operations")


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
    work: Work | None = None,
) -> Any:
    """The content of a pickle of plain data; the stream is left right behind it.

    Args:
      file: a binary stream.
      find: `(module, name) -> callable` of a name that the file calls; it raises `RefusedError` for
        a name that it does not know. A call may go once through the lists and dicts that it is
        given, and not through those in them. What it returns may have a method `build(state)`.
      persistent: what a reference to outside the pickle stands for; None refuses them. It may take
        as long as a call.
      work: what the file's pickles may cost together; None is for a file of one pickle.

    Raises:
      RefusedError: the file asks for more than plain data.
      Exception: the file is damaged. Of which class depends on the damage.
    """
    content = _Machine(find, persistent, work or Work()).run(file)
    _written_out(content, {}, 0)
    return content


def _long(read_length: Callable[[Any], int]) -> Callable[[Any], int]:
    """The reader of a whole number behind its length, which refuses a long one unread."""

    def read(stream: Any) -> int:
        length = read_length(stream)
        _check(0 <= length <= BITS // 8 + 1, TOO_LONG)
        return int.from_bytes(stream.read(length), "little", signed=True)

    return read


# The byte of an operation -> its name, and what reads its argument.
_OPERATIONS: dict[bytes, tuple[str, Callable[[Any], Any] | None]] = {
    op.code.encode("latin-1"): (op.name, op.arg.reader if op.arg else None)
    for op in pickletools.opcodes
}
_OPERATIONS[b"\x8a"] = ("LONG1", _long(pickletools.read_uint1))
_OPERATIONS[b"\x8b"] = ("LONG4", _long(pickletools.read_int4))


class _Machine:
    """Stack, marks and memo of one pickle."""

    def __init__(self, find, persistent, work: Work):
        self.find, self.persistent, self.work = find, persistent, work
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = []  # no dict, in which numbers of the file's choice could collide
        self.count = 0

    def run(self, file: IO[bytes]) -> Any:
        stream = Guarded(file)
        while True:
            name, reader = _operation(stream)
            self.work.spend(1)
            self.count += 1
            argument = None if reader is None else reader(stream)
            if name == "STOP":
                break
            self.step(name, argument)
        _check(len(self.stack) == 1, "its pickle does not end with one value")
        return self.stack[0]

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        _check(len(items) == len(self.stack) - start, "its stack runs empty")
        del self.stack[start:]
        return items

    def remember(self, index: int) -> None:
        # Whoever writes a pickle counts from 0 or 1, and remembers what an operation made.
        _check(0 <= index <= self.count, "its memo has gaps")
        self.memo.extend([_NOTHING] * (index + 1 - len(self.memo)))
        self.memo[index] = self.stack[-1]

    def remembered(self, index: int) -> Any:
        found = self.memo[index] if 0 <= index < len(self.memo) else _NOTHING
        _check(found is not _NOTHING, "its memo lacks an entry")
        return found

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in VALUES:
            stack.append(argument)
        elif name in ("BINGET", "GET", "LONG_BINGET"):
            stack.append(self.remembered(argument))
        elif name == "MEMOIZE":
            self.remember(len(self.memo))
        elif name in ("BINPUT", "PUT", "LONG_BINPUT"):
            self.remember(argument)
        elif name in TUPLES:
            count = TUPLES[name]
            _check(len(stack) >= count, "its stack runs empty")
            stack[-count:] = [tuple(stack[-count:])]
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in EMPTY:
            self.work.spend(COLLECTED.get(name, 0))
            stack.append(EMPTY[name]())
        elif name in INTEGERS:
            _check(argument.bit_length() <= BITS, TOO_LONG)
            stack.append(argument)
        elif name == "TUPLE":
            stack.append(tuple(self.since_mark()))
        elif name in ("REDUCE", "NEWOBJ"):
            self.call()
        elif name in ("BINPERSID", "PERSID"):
            self.refer(stack.pop() if name == "BINPERSID" else argument)
        elif name == "GLOBAL":
            stack.append(self.find(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = _as(stack.pop(), str), _as(stack.pop(), str)
            stack.append(self.find(module, attribute))
        elif name == "BUILD":
            self.build()
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self.since_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name not in ("PROTO", "FRAME"):
            self.fill(name)

    def fill(self, name: str) -> None:
        """The operations that put what lies on the stack into a list, dict or set."""
        stack = self.stack
        if name == "APPEND":
            item = stack.pop()
            _as(stack[-1], list).append(item)
        elif name == "APPENDS":
            items = self.since_mark()
            _as(stack[-1], list).extend(items)
        elif name == "LIST":
            stack.append(self.since_mark())
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            self.set_items(_as(stack[-1], dict), [key, value])
        elif name == "SETITEMS":
            items = self.since_mark()
            self.set_items(_as(stack[-1], dict), items)
        elif name == "DICT":
            items = self.since_mark()
            stack.append(self.set_items({}, items))
        elif name == "ADDITEMS":
            items = self.since_mark()
            self.add_items(_as(stack[-1], set), items)
        elif name == "FROZENSET":
            self.work.spend(COLLECTED[name])
            stack.append(frozenset(self.add_items(set(), self.since_mark())))
        else:
            raise RefusedError(f"the pickle operation {name}")

    def call(self) -> None:
        # Of all that can lie here only what `find` returned is callable.
        arguments, called = _as(self.stack.pop(), tuple), self.stack.pop()
        items = sum(len(given) for given in arguments if isinstance(given, CONTAINERS))
        self.work.spend(CALL + (len(arguments) + items) // ITEMS)
        self.stack.append(called(*arguments))

    def refer(self, pid: Any) -> None:
        if self.persistent is None:
            raise RefusedError("a reference to outside the file")
        self.work.spend(CALL)
        self.stack.append(self.persistent(pid))

    def build(self) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        # An OrderedDict may carry attributes, such as the version of a state dict.
        if isinstance(built, dict):
            return
        if not hasattr(built, "build"):
            raise RefusedError(f"a state of a {type(built).__name__}")
        built.build(state)

    def set_items(self, target: dict, items: list[Any]) -> dict:
        _check(len(items) % 2 == 0, "a key has no value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key, target, self.work)] = value
        return target

    def add_items(self, target: set, items: list[Any]) -> set:
        for item in items:
            target.add(_key(item, target, self.work))
        return target


def _operation(stream: Guarded) -> tuple[str, Callable[[Any], Any] | None]:
    """Name and reader of the next operation."""
    code = stream.read(1)
    if code not in _OPERATIONS:
        raise ValueError("it ends too early" if not code else f"it is no pickle at the byte {code}")
    return _OPERATIONS[code]


def dict_of(work: Work, pairs: Any = ()) -> dict:
    """A dict of pairs with plain keys, for names that build one, such as OrderedDict.

    Raises:
      ValueError: it is no list of pairs, or costs more than `work` allows.
      RefusedError: a key is not plain.
    """
    found: dict = {}
    for pair in _as(pairs, (list, tuple)):
        key, value = _as(pair, (list, tuple))
        found[_key(key, found, work)] = value
    return found


def _key(key: Any, target: dict | set, work: Work) -> Any:
    """A key that can be put into `target` at a cost that is paid."""
    if type(key) not in KEYS:
        raise RefusedError(f"a {type(key).__name__} as a key")
    if isinstance(key, str | bytes):
        _check(len(key) <= LONGEST_KEY, "a key is longer than any name")
    elif key is not None:
        # Python's hash of a number is no secret: each may collide with all that are there.
        _check(abs(key) < 2**63 or type(key) is float, "a key is larger than 2⁶³")
        work.spend(len(target) // PROBES)
    return key


def _written_out(value: Any, known: dict[int, int], depth: int) -> int:
    """How many things `value` is with all that is in it, each as often as it is mentioned.

    Lists that hold one list twice that holds one list twice ... are small, but whoever prints or
    compares them never ends.

    Raises:
      ValueError: they are too many, or nested too deeply, as everything is that contains itself.
    """
    if isinstance(value, str | bytes):
        return 1 + len(value) // 64
    parts = _parts(value)
    if not parts:
        return 1
    if id(value) not in known:
        _check(depth < DEPTH, "its lists and dicts are nested too deeply")
        known[id(value)] = 1 + sum(_written_out(part, known, depth + 1) for part in parts)
        _check(known[id(value)] <= WORK, "it mentions the same things too often")
    return known[id(value)]


def _parts(value: Any) -> Any:
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, CONTAINERS):
        return value
    return list(vars(value).values()) if hasattr(value, "build") else ()


def _as(value: Any, kind: type | tuple[type, ...]) -> Any:
    if not isinstance(value, kind):
        wanted = kind if isinstance(kind, type) else kind[0]
        raise ValueError(f"a {type(value).__name__} stands where a {wanted.__name__} must stand")
    return value


def _check(right: bool, wrong: str) -> None:
    if not right:
        raise ValueError(wrong)
