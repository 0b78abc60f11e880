"""Files of weights: the safetensors format, without its library, since dcgan must run where only
PyTorch is installed.

8 bytes of header length, a JSON header of names, shapes and byte ranges, then the tensors.
"""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {"F32": torch.float32, "I64": torch.int64}


def pack(tensors: dict[str, Tensor]) -> bytes:
    """The content of a safetensors file of float32 and int64 tensors (see `unpack`), with the
    sha256 of what follows the header, by which `is_whole` knows it."""
    header: dict[str, Any] = {}
    body = b""
    for name, tensor in tensors.items():
        raw = tensor.contiguous().numpy().tobytes()
        (dtype,) = (key for key, known in DTYPES.items() if known == tensor.dtype)
        offsets = [len(body), len(body) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        body += raw
    header["__metadata__"] = {"sha256": hashlib.sha256(body).hexdigest()}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def unpack(content: bytes) -> dict[str, Tensor]:
    """The float32 and int64 tensors of a safetensors file, by name."""
    start = 8 + struct.unpack_from("<Q", content)[0]
    tensors = {}
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    for name, entry in header.items():
        low, high = entry["data_offsets"]
        raw = bytearray(content[start + low : start + high])  # a tensor must be writable
        tensors[name] = torch.frombuffer(raw, dtype=DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def is_whole(file: Path) -> bool:
    """Whether a file of weights is as `pack` made it."""
    content = file.read_bytes()
    try:
        start = 8 + struct.unpack_from("<Q", content)[0]
        known = json.loads(content[8:start])["__metadata__"]["sha256"]
    except (ValueError, KeyError, struct.error):
        return False
    return bool(hashlib.sha256(content[start:]).hexdigest() == known)
