"""Tensors and text in one safetensors file, with a checksum over every bit of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256

from safetensors.torch import load, save
from torch import Tensor

CHECKSUM = "sde_models.sha256"
START = f'{{"__metadata__":{{"{CHECKSUM}":"'.encode()
"""What the header begins with, so that the checksum stands in the same place in every file."""

PLACE = slice(8 + len(START), 8 + len(START) + 64)
BLANK = b"0" * 64
"""What stands in place of the checksum while it is computed."""


class DamagedError(ValueError):
    """Content that differs from what was written."""


@dataclass(frozen=True)
class TensorFile:
    """The content of a file.

    Attributes:
        tensors: Tensors by name, on the CPU.
        metadata: Text by name.
        checked: Whether there was a checksum; it matches.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    checked: bool = True

    def pack(self) -> bytes:
        """The file as bytes, which any reader of safetensors takes.

        Raises:
            TypeError: For a tensor whose dtype the format does not know, by name.
        """
        plain = save({name: _own_memory(name, value) for name, value in self.tensors.items()})
        end = 8 + int.from_bytes(plain[:8], "little")
        body = memoryview(plain)[end:]
        header = json.loads(plain[8:end])
        header.pop("__metadata__", None)
        metadata = {CHECKSUM: BLANK.decode(), **self.metadata}
        text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        head = len(text).to_bytes(8, "little") + text
        digest = _digest(head, body)
        return b"".join((head[: PLACE.start], digest, head[PLACE.stop :], body))


def unpack(content: bytes) -> TensorFile:
    """Read what :meth:`TensorFile.pack` or another writer of safetensors has written.

    Raises:
        DamagedError: If there is a checksum and a bit is not as it was written.
        ValueError: If it is no safetensors file.

    Example:
        >>> content = TensorFile({"a": torch.ones(2)}, {"by": "me"}).pack()
        >>> unpack(content).tensors["a"], unpack(content).metadata["by"]
        (tensor([1., 1.]), 'me')
        >>> unpack(content[:-1] + b"!")
        Traceback (most recent call last):
        ...
        sde_models._utils.tensor_files.DamagedError: its checksum does not fit
    """
    checked = content[8 : PLACE.start] == START
    if checked:
        head, body = content[: PLACE.stop], memoryview(content)[PLACE.stop :]
        if _digest(head, body) != content[PLACE]:
            raise DamagedError("its checksum does not fit")
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = dict(header.get("__metadata__", {}))
    except Exception as error:  # forged bytes may raise anything
        raise ValueError(f"it is no safetensors file, or damaged: {error}") from error
    return TensorFile(tensors, metadata, checked)


def _digest(head: bytes, body: memoryview) -> bytes:
    digest = sha256(head[: PLACE.start])
    digest.update(BLANK + head[PLACE.stop :])
    digest.update(body)
    return digest.hexdigest().encode()


def _own_memory(name: str, value: Tensor) -> Tensor:
    """A copy on the CPU: safetensors refuses tied weights, which share theirs."""
    own = value.detach().to("cpu", copy=True).contiguous()
    try:
        save({name: own[:0] if own.ndim else own})
    except KeyError as error:
        raise TypeError(
            f"{name} has dtype {own.dtype}, which a safetensors file cannot hold: use complex64, "
            "or one tensor each for the real and the imaginary part"
        ) from error
    return own
