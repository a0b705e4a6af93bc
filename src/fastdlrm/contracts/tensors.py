"""One tensor as it crosses a process border: a datatype's name, a shape, flat little-endian data.

Datatypes are those of the Open Inference Protocol and Triton's BF16. Text (BYTES) lies as the
binary tensor extension writes it: of each element its length as u32, then its bytes.

What comes from outside is checked by the constructors: size against shape, range against datatype.
The one thing left to the reader of a BYTES tensor is the walk over its elements (`items`, or the
request encoder's own): a length inside the data can only be checked by walking.
"""

import reprlib
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdlrm.errors import RequestError

MAX_RANK = 16
"""Dimensions a tensor may have."""
MAX_ELEMENTS = 2**40
"""Elements a shape may count, its zeros read as ones; above it a size in bytes means nothing."""
BYTES = "BYTES"
LENGTH_BYTES = 4
"""Bytes before each element of a BYTES tensor: its length."""

SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 64


class Datatype(NamedTuple):
    """What a datatype's name stands for."""

    name: str
    dtype: np.dtype[Any]
    """Of `WireTensor.data`; uint8 for BYTES, the bits as uint16 for BF16."""
    size: int
    """Bytes an element; 0 for BYTES."""
    kind: str
    """bool, int, float or text: the Python values it takes."""


DATATYPES: dict[str, Datatype] = {
    row[0]: Datatype(row[0], np.dtype(row[1]), row[2], row[3])
    for row in (
        ("BOOL", "?", 1, "bool"),
        ("UINT8", "u1", 1, "int"),
        ("UINT16", "<u2", 2, "int"),
        ("UINT32", "<u4", 4, "int"),
        ("UINT64", "<u8", 8, "int"),
        ("INT8", "i1", 1, "int"),
        ("INT16", "<i2", 2, "int"),
        ("INT32", "<i4", 4, "int"),
        ("INT64", "<i8", 8, "int"),
        ("FP16", "<f2", 2, "float"),
        ("BF16", "<u2", 2, "float"),
        ("FP32", "<f4", 4, "float"),
        ("FP64", "<f8", 8, "float"),
        (BYTES, "u1", 0, "text"),
    )
}
"""Every datatype, by name."""

NAME_OF_DTYPE = {
    (datatype.dtype.kind, datatype.size): name
    for name, datatype in DATATYPES.items()
    if name not in (BYTES, "BF16")
}
ALLOWED_TYPES: dict[str, frozenset[type]] = {
    "bool": frozenset((bool,)),
    "int": frozenset((int,)),
    "float": frozenset((float, int, type(None))),
    "text": frozenset((str, bytes, type(None))),
}
ALLOWED_WORDS = {
    "bool": "true and false",
    "int": "integers",
    "float": "numbers, or null for a missing one",
    "text": "strings, or null for a missing one",
}
ASCII_PREFIXES = [chr(length) + "\0\0\0" for length in range(128)]
"""The length before an element of up to 127 ASCII characters, itself as text."""


MAKE = tuple.__new__
"""Half the time of a NamedTuple's own constructor: a request has some forty tensors."""


class WireTensor(NamedTuple):
    """A tensor between processes; build one with a constructor that checks it.

    Views of a request's body may be unaligned; `payload.unpack` gives aligned ones.
    """

    datatype: str
    shape: tuple[int, ...]
    data: NDArray[Any]
    """1-D, of the datatype's dtype; may be a read-only view."""

    @classmethod
    def from_buffer(
        cls,
        datatype: str,
        shape: Sequence[int],
        buffer: bytes | bytearray | memoryview,
        *,
        where: str = "tensor",
    ) -> "WireTensor":
        """View raw little-endian data as a tensor, without a copy.

        Args:
            datatype: A key of `DATATYPES`.
            shape: Dimensions, each >= 0.
            buffer: Exactly the elements; for BYTES at least the lengths (`items` checks the rest).
            where: What messages call the tensor, as `input 'C1'`.

        Raises:
            RequestError: Unknown datatype, bad shape, size that is not the shape's, or a BOOL
                byte other than 0 and 1.
        """
        size = memoryview(buffer).nbytes
        return view_tensor(datatype, tuple(shape), buffer, 0, size, where)

    @classmethod
    def from_array(cls, values: NDArray[Any], *, where: str = "tensor") -> "WireTensor":
        """Turn a numpy array of any shape into a tensor; copies only where it must.

        Args:
            values: bool, int8..uint64, float16..float64; strings, bytes or objects of both make
                BYTES.
            where: What messages call the tensor.

        Raises:
            RequestError: No datatype stands for the array's dtype, or an object is no text.
        """
        if values.dtype.kind in "USO":
            return cls.from_list(BYTES, values.shape, values.ravel().tolist(), where=where)
        name = NAME_OF_DTYPE.get((values.dtype.kind, values.dtype.itemsize))
        if name is None:
            raise RequestError(
                f"{where}: an array of {values.dtype} has no datatype; convert it to one of "
                f"{', '.join(DATATYPES)}"
            )
        count_elements(values.shape, where)
        flat = np.ascontiguousarray(values, dtype=DATATYPES[name].dtype).reshape(-1)
        return cls(name, values.shape, flat)

    @classmethod
    def from_list(
        cls, datatype: str, shape: Sequence[int], values: Sequence[Any], *, where: str = "tensor"
    ) -> "WireTensor":
        """Turn Python values, flat in row-major order, into a tensor.

        Args:
            datatype: A key of `DATATYPES`.
            shape: Dimensions, each >= 0.
            values: bool for BOOL, int for integers, int, float or None (NaN) for floats, str,
                bytes or None (empty) for BYTES. Nothing is converted silently: 1.5 is no INT64
                and "7" no number.
            where: What messages call the tensor.

        Raises:
            RequestError: Unknown datatype, bad shape, another number of values than the shape's,
                a value of another type or outside the datatype's range.
        """
        known = DATATYPES.get(datatype)
        if known is None:
            raise unknown_datatype(datatype, where)
        count = count_elements(shape, where)
        if len(values) != count:
            raise RequestError(
                f"{where}: {len(values)} values, but shape {list(shape)} takes {count}; "
                "send one value an element"
            )
        if not ALLOWED_TYPES[known.kind].issuperset(map(type, values)):
            raise wrong_type(known, values, where)
        data = pack_texts(values, where) if known.kind == "text" else pack(known, values, where)
        return cls(datatype, tuple(shape), data)

    @classmethod
    def from_texts(
        cls, values: Sequence[str | bytes | None], shape: Sequence[int] | None = None
    ) -> "WireTensor":
        """A BYTES tensor of these texts, shape (len(values),) where none is given."""
        return cls.from_list(BYTES, (len(values),) if shape is None else shape, values)

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def num_bytes(self) -> int:
        """Size of the data."""
        return self.data.nbytes

    def values(self) -> NDArray[Any]:
        """The numbers in the tensor's shape, without a copy; BF16 as float32.

        Raises:
            RequestError: The tensor is BYTES.
        """
        if self.datatype == BYTES:
            raise RequestError("a BYTES tensor has no numbers; read it with items() or texts()")
        data = bfloat16_to_float32(self.data) if self.datatype == "BF16" else self.data
        return data.reshape(self.shape)

    def items(self, *, where: str = "tensor") -> list[bytes]:
        """The elements of a BYTES tensor in row-major order, every length checked.

        Raises:
            RequestError: The tensor is not BYTES, a length points past the data, or bytes are left.
        """
        if self.datatype != BYTES:
            raise RequestError(f"{where}: a {self.datatype} tensor has no texts; send BYTES")
        buffer = self.data.tobytes()
        total = len(buffer)
        items = []
        end = 0
        for index in range(self.num_elements):
            begin = end + LENGTH_BYTES
            end = begin + int.from_bytes(buffer[end:begin], "little")
            if begin > total or end > total:
                raise RequestError(
                    f"{where}: element {index} of {self.num_elements} ends at byte {end} of "
                    f"{total}; each element is its length as u32, little-endian, then its bytes"
                )
            items.append(buffer[begin:end])
        if end != total:
            raise RequestError(
                f"{where}: {total - end} bytes left after {self.num_elements} elements; "
                "the shape must count all of them"
            )
        return items

    def texts(self, *, where: str = "tensor") -> list[str]:
        """The elements of a BYTES tensor as text.

        Raises:
            RequestError: As `items`, or an element is not UTF-8.
        """
        try:
            return [item.decode() for item in self.items(where=where)]
        except UnicodeDecodeError as error:
            raise RequestError(f"{where}: an element is not UTF-8 text ({error})") from None


def view_tensor(
    datatype: str,
    shape: tuple[int, ...],
    buffer: bytes | bytearray | memoryview,
    start: int,
    size: int,
    where: str,
) -> WireTensor:
    """`WireTensor.from_buffer` of `size` bytes from `start` on; the buffer must hold them."""
    known = DATATYPES.get(datatype)
    if known is None:
        raise unknown_datatype(datatype, where)
    _, dtype, width, kind = known
    count = count_elements(shape, where)
    if width:
        if size != count * width:
            raise RequestError(
                f"{where}: {size} bytes of data, but shape {list(shape)} of {datatype} takes "
                f"{count * width}; send exactly that many"
            )
        data = np.frombuffer(buffer, dtype, count, start)
        if kind == "bool" and count and data.view(np.uint8).max() > 1:
            raise RequestError(f"{where}: a byte of BOOL data is neither 0 nor 1; send 0 or 1")
    else:
        check_text_size(size, count, shape, where)
        data = np.frombuffer(buffer, dtype, size, start)
    return MAKE(WireTensor, (datatype, shape, data))


def count_elements(shape: Sequence[int], where: str = "tensor") -> int:
    """Product of a shape's dimensions, each checked.

    Raises:
        RequestError: A negative dimension, more than `MAX_RANK` or more than `MAX_ELEMENTS`.
    """
    if len(shape) == 1 and 0 <= shape[0] <= MAX_ELEMENTS:
        return shape[0]  # nearly all tensors of a request
    count = 1
    bound = 1
    for size in shape:
        if size < 0:
            raise RequestError(
                f"{where}: shape {shape_text(shape)} has a negative dimension; "
                "send the real sizes (-1 stands in metadata only)"
            )
        count *= size
        bound *= size or 1
        if bound > MAX_ELEMENTS:
            raise RequestError(
                f"{where}: shape {shape_text(shape)} counts more than {MAX_ELEMENTS} elements; "
                "send a smaller tensor"
            )
    if len(shape) > MAX_RANK:
        raise RequestError(
            f"{where}: {len(shape)} dimensions, {MAX_RANK} are allowed; send a flatter tensor"
        )
    return count


def bfloat16_to_float32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The numbers that 16 bits of BF16 stand for: the upper half of a float32; shape kept."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float32_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of BF16 nearest to each number, ties to even; NaN stays NaN; shape kept."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + odd) >> np.uint64(16)).astype(np.uint16)
    quiet = ((bits >> np.uint32(16)) | np.uint32(0x40)).astype(np.uint16)
    return np.where(np.isnan(values), quiet, rounded)


def pack(known: Datatype, values: Sequence[Any], where: str) -> NDArray[Any]:
    """Python numbers of the right types as data; RequestError where one is out of range."""
    try:
        data = np.array(values, dtype=np.float64 if known.kind == "float" else known.dtype)
    except OverflowError:
        raise out_of_range(known, where) from None
    if known.kind != "float":
        return data
    with np.errstate(over="ignore"):
        narrow = data.astype(np.float32 if known.name == "BF16" else known.dtype)
    packed = float32_to_bfloat16(narrow) if known.name == "BF16" else narrow
    numbers = bfloat16_to_float32(packed) if known.name == "BF16" else narrow
    if not np.array_equal(np.isfinite(data), np.isfinite(numbers)):
        raise out_of_range(known, where)
    return packed


def pack_texts(values: Sequence[str | bytes | None], where: str) -> NDArray[np.uint8]:
    """Texts in the form of the binary tensor extension."""
    try:  # all short and ASCII: lengths and texts are joined as text, and encoded at once
        joined = "".join([ASCII_PREFIXES[len(value)] + value for value in values])  # type: ignore
        return np.frombuffer(joined.encode("ascii"), dtype=np.uint8)
    except (TypeError, IndexError, UnicodeEncodeError):
        pass
    try:
        items = [value.encode() if isinstance(value, str) else value or b"" for value in values]
    except UnicodeEncodeError as error:
        raise RequestError(f"{where}: a text cannot be written as UTF-8 ({error})") from None
    parts = chain.from_iterable((struct.pack("<I", len(item)), item) for item in items)
    return np.frombuffer(b"".join(parts), dtype=np.uint8)


def check_text_size(size: int, count: int, shape: Sequence[int], where: str) -> None:
    """Refuse BYTES data too short for its lengths, and data of no element."""
    if size < count * LENGTH_BYTES or (size and not count):
        raise RequestError(
            f"{where}: {size} bytes of data for the {count} BYTES elements of shape "
            f"{list(shape)}; each element is its length as u32, little-endian, then its bytes"
        )


def out_of_range(known: Datatype, where: str) -> RequestError:
    """The error of a number that its datatype cannot hold."""
    return RequestError(
        f"{where}: a value is outside the range of {known.name}; send a wider datatype"
    )


def unknown_datatype(datatype: str, where: str) -> RequestError:
    """The error of a datatype that is not in the table."""
    return RequestError(
        f"{where}: datatype {quoted(datatype)} is not known; allowed are {', '.join(DATATYPES)}"
    )


def wrong_type(known: Datatype, values: Sequence[Any], where: str) -> RequestError:
    """The error of the first value that is of none of a datatype's Python types."""
    allowed = ALLOWED_TYPES[known.kind]
    index, value = next((i, v) for i, v in enumerate(values) if type(v) not in allowed)
    return RequestError(
        f"{where}: value {index} is {quoted(value)}; {known.name} takes {ALLOWED_WORDS[known.kind]}"
    )


def quoted(value: object) -> str:
    """A client's value for a message: as Python writes it, cut where it is long or deep."""
    return SHORT.repr(value)


def place(what: str, name: str) -> str:
    """What messages call a tensor, as `input 'C1'`; a long name is cut."""
    return f"{what} {name!r}" if len(name) <= 60 else f"{what} {quoted(name)}"


def shape_text(shape: Sequence[int]) -> str:
    """A shape for a message, cut where it is long."""
    text = str(list(shape[: MAX_RANK + 1]))
    return text if len(text) <= 120 else text[:120] + "..."
