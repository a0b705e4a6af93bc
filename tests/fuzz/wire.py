"""Damage valid requests at random: what reads them raises RequestError or accepts a sound request.

    python -m tests.fuzz.wire [seconds] [seed]

A request that is accepted must hold what its shapes say, and come back the same when it is written
again. The end states how many inputs were tried, and how many of them were accepted.
"""

import contextlib
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable

import numpy as np

from fastdlrm.contracts.parameters import Parameters
from fastdlrm.contracts.payload import pack, unpack
from fastdlrm.contracts.tensors import BYTES, DATATYPES, WireTensor
from fastdlrm.contracts.wire import (
    HEADER_LENGTH,
    Infer,
    Outcome,
    RequestedOutput,
    decode_error,
    decode_infer,
    decode_outcome,
    encode_infer,
    encode_outcome,
    read_header_length,
)
from fastdlrm.errors import RequestError
from fastdlrm.serve.grpc_messages import (
    InferRequest,
    InferResponse,
    infer_of,
    parse,
    response_of,
)
from fastdlrm.serve.ranking import decode_rank, decode_score
from tests.grpc_client import outcome_of, request_of

TOKENS = [
    b"-1", b"0", b"1", b"2", b"3", b"127", b"128", b"256", b"4294967295", b"9223372036854775807",
    b"9223372036854775808", b"18446744073709551616", b"1e999", b"-0.0", b"1.5", b"NaN", b"null",
    b"true", b"[]", b"{}", b"[[1]]", b'""', b'"\\ud800"', b'"\xff"', b"\xf0\x9f\x98\x80", b"\0",
    b"[" * 2000, b"BYTES", b"BOOL", b"FP16", b"BF16", b"INT64", b"data", b"shape", b"parameters",
    b"binary_data_size", b",", b":", b"\xff\xff\xff\xff", b"\x01\0\0\0", b"\x80",
]  # fmt: skip
Read = Callable[[bytes, int | None], dict[str, WireTensor]]


def sample_tensors(rng: random.Random) -> dict[str, WireTensor]:
    """A few tensors of random datatypes and shapes."""
    tensors = {}
    for index in range(rng.randint(0, 5)):
        name = rng.choice(list(DATATYPES))
        shape = tuple(rng.randint(0, 4) for _ in range(rng.randint(0, 3)))
        count = int(np.prod(shape, dtype=np.int64))
        if name == BYTES:
            texts = ["x" * rng.choice([0, 1, 8, 200]) for _ in range(count)]
            tensors[f"t{index}"] = WireTensor.from_texts(texts, shape)
        elif DATATYPES[name].kind == "float":
            numbers = [rng.choice([None, rng.random()]) for _ in range(count)]
            tensors[f"t{index}"] = WireTensor.from_list(name, shape, numbers)
        else:
            values = np.array([rng.randint(0, 1) for _ in range(count)], DATATYPES[name].dtype)
            tensors[f"t{index}"] = WireTensor(name, shape, values)
    return tensors


def sample_request(rng: random.Random) -> Infer:
    """A valid request."""
    tensors = sample_tensors(rng)
    return Infer(
        inputs=tensors,
        model_name="m",
        id=rng.choice(["", "id"]),
        parameters=Parameters(
            timeout_us=rng.choice([0, 5]),
            top_k=rng.choice([None, 3]),
            binary_data_output=rng.choice([True, False]),
        ),
        outputs=tuple(RequestedOutput(name) for name in tensors if rng.random() < 0.3),
    )


def damage(rng: random.Random, body: bytes) -> bytes:
    """The body, changed in one to four places."""
    out = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        start = rng.randint(0, len(out))
        stop = min(len(out), start + rng.choice([0, 1, 1, 2, 4, 8, 32]))
        kind = rng.randrange(6)
        if kind == 0 and start < len(out):
            out[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[start:stop]
        elif kind == 2:
            out[start:stop] = rng.choice(TOKENS)
        elif kind == 3:
            out[start:start] = out[rng.randint(0, start) : stop]
        elif kind == 4:
            out[start:stop] = rng.randbytes(stop - start)
        else:
            digits = [i for i, byte in enumerate(out) if 48 <= byte <= 57]
            if digits:
                at = rng.choice(digits)
                out[at : at + 1] = rng.choice(TOKENS[:16])
    return bytes(out)


def check(tensors: dict[str, WireTensor]) -> None:
    """Hold accepted tensors to their shapes, and to themselves when written again."""
    for tensor in tensors.values():
        known = DATATYPES[tensor.datatype]
        assert tensor.data.ndim == 1
        assert tensor.data.dtype == known.dtype
        if tensor.datatype == BYTES:
            with contextlib.suppress(RequestError):  # inner lengths are the walk's to check
                assert len(tensor.items()) == tensor.num_elements
        else:
            assert tensor.data.size == tensor.num_elements
            assert tensor.values().shape == tensor.shape
    headers, body = encode_infer(Infer(inputs=tensors))
    again = decode_infer(body, read_header_length(headers.get(HEADER_LENGTH))).inputs
    packed = unpack(memoryview(pack(tensors).to_bytes()))
    for name, tensor in tensors.items():
        for copy in (again[name], packed[name]):
            assert copy[:2] == tensor[:2]
            assert copy.data.tobytes() == tensor.data.tobytes()


READERS: dict[str, Read] = {
    "infer": lambda body, length: decode_infer(body, length).inputs,
    "outcome": lambda body, length: decode_outcome(body, length).outputs,
    "payload": lambda body, _: unpack(memoryview(body)),
    "grpc_request": lambda body, _: infer_of(parse(InferRequest, body)).inputs,
    "grpc_response": lambda body, _: outcome_of(parse(InferResponse, body)).outputs,
    "rank": lambda body, _: decode_rank(body).infer.inputs,
    "score": lambda body, _: decode_score(body).inputs,
}
RANK_BODY = (
    b'{"user":{"age":31,"city":"Riga","seen":[7,8]},"candidates":[{"item":"a","price":1.5,'
    b'"tags":["x"]},{"item":null,"price":2,"tags":[]}],"top_k":2,"timeout_ms":20}'
)
SCORE_BODY = b'{"rows":{"item":["a",null],"price":[1,2.5],"tags":[["x"],null]},"id":"7"}'


def valid_body(rng: random.Random, target: str) -> tuple[bytes, int | None]:
    """Body, and length of its JSON, of a valid input for a reader."""
    infer = sample_request(rng)
    outcome = Outcome(model_name="m", outputs=infer.inputs)
    match target:
        case "infer":
            headers, body = encode_infer(infer, binary=rng.choice([True, False, ("t0", "t2")]))
            return body, read_header_length(headers.get(HEADER_LENGTH))
        case "outcome":
            headers, chunks = encode_outcome(outcome, infer)
            return b"".join(chunks), read_header_length(headers.get(HEADER_LENGTH))
        case "payload":
            return pack(infer.inputs).to_bytes(), None
        case "grpc_request":
            if rng.random() < 0.5:
                return request_of(infer).SerializeToString(), None
            # fields 1 to 4 of outputs and of inputs are the same: typed data for the reader
            answer = response_of(outcome, Infer(inputs={}), is_raw=False)
            request = InferRequest()
            for output in answer.outputs:
                request.inputs.add().MergeFromString(output.SerializeToString())
            request.raw_input_contents.extend(answer.raw_output_contents)
            return request.SerializeToString(), None
        case "grpc_response":
            return response_of(outcome, infer).SerializeToString(), None
        case "rank":
            return RANK_BODY, None
        case _:
            return SCORE_BODY, None


def fuzz(seconds: float, seed: int) -> Counter[str]:
    """Try damaged inputs for so long; counts by reader, and of each those accepted.

    Raises:
        AssertionError: An accepted input is not what it says.
        Exception: Whatever else than RequestError a reader raised.
    """
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for target, read in READERS.items():
            body, length = valid_body(rng, target)
            check(read(body, length))
            for _ in range(20):
                wrong = damage(rng, body) if rng.random() < 0.97 else rng.randbytes(len(body))
                wrong_length = length
                if rng.random() < 0.2:
                    wrong_length = rng.choice([None, -1, 0, rng.randint(0, len(wrong) + 2)])
                counts[target] += 1
                try:
                    tensors = read(wrong, wrong_length)
                except RequestError as error:
                    assert len(str(error)) < 2000
                    continue
                except BaseException:
                    print(f"{target}: {wrong!r} with length {wrong_length}", file=sys.stderr)
                    raise
                counts[f"{target} accepted"] += 1
                check(tensors)
                decode_error(wrong)
    return counts


if __name__ == "__main__":
    warnings.simplefilter("error")
    duration = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    start = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    found = fuzz(duration, start)
    tried = sum(found[target] for target in READERS)
    print(f"{tried} damaged inputs in {duration:g} s, seed {start}")
    for target in READERS:
        print(f"  {target}: {found[target]}, of which {found[target + ' accepted']} accepted")
