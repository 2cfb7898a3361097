"""Hostile files: a valid small file of some kind, damaged.

Fields of its header get extreme values, bytes are changed, put in or cut out, before or after compression. What is made
follows from the random numbers alone.
"""

import gzip
import io
import re
import struct
import tempfile
from functools import cache
from pathlib import Path
from random import Random

import nibabel as nib
import numpy as np
import torch

from lsbook.checkpoints import save_checkpoint
from lsbook.networks import build_model

# (offset, struct format) of the fields of a NIfTI-1 header, each number its own; "s" is the magic.
FIELDS = [(0, "i"), (70, "h"), (72, "h"), (108, "f"), (112, "f"), (116, "f"), (123, "b"), (252, "h"), (254, "h")]
FIELDS += [(40 + 2 * n, "h") for n in range(8)] + [(76 + 4 * n, "f") for n in range(8)]
FIELDS += [(256 + 4 * n, "f") for n in range(18)] + [(344, "s"), (348, "i"), (352, "i"), (356, "i")]
WHOLE = [0, 1, 2, 3, 4, 5, 7, 8, 16, 64, 128, 255, 256, 348, 512, 540, 768, 1024, 1280, 1536, 2048, 30000, 32767]
WHOLE += [-1, -2, -32768, 2**31 - 1, -(2**31)]
REAL = [0.0, -0.0, 0.5, 1.0, -1.0, 1.5, 352.0, 360.0, 544.0, 1e-45, 1e-30, 1e-4, 1e4, 1e10, 1e30, 3e38]
REAL += [float("nan"), float("inf"), -float("inf"), -352.0]
MAGIC = [b"n+1\0", b"ni1\0", b"n+2\0", b"n+9\0", bytes(4)]
WORDS = [b"0", b"-1", b"1e999", b"NaN", b"Infinity", b"99999999999", b"null", b"[]", b"{}", b'"x"', b"true", b"2.5"]
WORDS += [b"[[1, 2]]", b"1000000", b"lsn", b"unet", b"F64", b"I64", b"BOOL", b"[" * 2000, b"\xff", b'"']


def nifti(dtype: str, second: bool = False, swapped: bool = False, note: bool = False, **fields: float) -> bytes:
    """A NIfTI-1 or -2 file of 6 x 5 x 4 voxels: labels as uint8, else HU; ``swapped`` is big-endian."""
    rng = np.random.default_rng(0)
    data = rng.integers(*((0, 3) if dtype == "uint8" else (-100, 100)), (6, 5, 4)).astype(dtype)
    kind = nib.Nifti2Image if second else nib.Nifti1Image
    header = kind.header_class(endianness=">" if swapped else "<")
    image = kind(data, np.diag([-1.5, -1.5, 3.0, 1.0]), header, dtype=dtype)
    if note:
        image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"a comment"))
    content = bytearray(image.to_bytes())
    for offset, number in zip((112, 116), fields.values(), strict=False):
        struct.pack_into("<f", content, offset, number)
    return bytes(content)


def archive(packed: bool) -> bytes:
    """Weights as .npz."""
    file = io.BytesIO()
    save = np.savez_compressed if packed else np.savez
    save(file, **{"conv.weight": np.ones((2, 1, 3, 3), np.float32), "conv.bias": np.zeros(2)})
    return file.getvalue()


def checkpoint(name: str, **options: object) -> bytes:
    """A checkpoint of a small model."""
    torch.manual_seed(0)
    info = {"model": name, "options": options, "preprocessing": {"size": 16, "low": -40.0, "high": 160.0}, "epoch": 1}
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "model", build_model(name, **options), info)
        return (Path(folder) / "model").read_bytes()


@cache
def valid_files() -> dict[str, list[bytes]]:
    """Valid files, by what is to read them."""
    scans = [nifti(kind) for kind in ("int8", "int16", "uint16", "int32", "int64", "float32", "float64", "uint8")]
    scans += [nifti("int16", scl_slope=2, scl_inter=-1024), nifti("int16", swapped=True), nifti("int16", note=True)]
    scans += [nifti("int16", second=True), nifti("float32", second=True, swapped=True)]
    masks = [nifti("uint8"), nifti("uint8", note=True), nifti("uint8", second=True)]
    lse = {"steps": 3, "seed": [[0.4, 0.3, 0.1], [0.5, 0.5, 0.1]], "contrast": 0.1, "sigma": 0.5, "method": "auto"}
    models = [checkpoint("lse", **lse), checkpoint("unet", filters=2, depth=2), checkpoint("unet", depth=1)]
    models += [checkpoint("unet-textbook", filters=2, depth=2, batch_norm=True, dropout=0.5)]
    return {"scan": scans, "mask": masks, "checkpoint": models, "weights": [archive(False), archive(True), models[1]]}


def any_bytes(content: bytes, rng: Random) -> bytes:
    """Some bytes changed, cut out, put in or doubled, or the end lost."""
    for _ in range(rng.choice([1, 1, 2, 8])):
        at, length = rng.randrange(len(content) + 1), rng.choice([1, 1, 4, 16, 200])
        new = rng.choice([rng.randbytes(length), bytes(length), b"\xff" * length, content[at : at + length] * 2])
        end = content[at + rng.choice([0, length, length, 2 * length]) :]
        content = content[:at] + rng.choice([new + end, new + end, end, b""])
    return content


def header(content: bytes, rng: Random) -> bytes:
    """Some fields of a NIfTI-1 header set to values that are extreme, or right elsewhere."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        offset, form = rng.choice(FIELDS)
        if form == "s":
            packed = rng.choice(MAGIC)
        elif form == "f":
            packed = struct.pack("<f", rng.choice(REAL))
        else:
            size = struct.calcsize(form)
            packed = (rng.choice(WHOLE) % 256**size).to_bytes(size, "little")
        content = content[:offset] + packed + content[offset + len(packed) :]
    return content


def voxels(content: bytes, rng: Random) -> bytes:
    """Some voxels set to NaN, infinity, or any bits."""
    for _ in range(rng.choice([1, 3])):
        at = 352 + 4 * rng.randrange(30)
        content = content[:at] + rng.choice([struct.pack("<f", rng.choice(REAL)), rng.randbytes(4)]) + content[at + 4 :]
    return content


def words(content: bytes, rng: Random) -> bytes:
    """Some numbers or words of the header of a safetensors file replaced, its length right again in most cases."""
    size = int.from_bytes(content[:8], "little")
    head, tail = content[8 : 8 + size], content[8 + size :]
    for _ in range(rng.choice([1, 1, 2])):
        word = rng.choice(list(re.finditer(rb"-?\d[\d.]*|\w+", head)))
        head = head[: word.start()] + rng.choice(WORDS) + head[word.end() :]
    length = rng.choice([len(head)] * 12 + [0, 1, len(head) - 1, 2**31, 2**63, len(content)])
    return length.to_bytes(8, "little") + head + tail


def weights(content: bytes, rng: Random) -> bytes:
    """One of the last weights of a safetensors file set to NaN, infinity or another number."""
    at = len(content) - 4 * rng.randrange(1, 4)
    return content[:at] + struct.pack("<f", rng.choice(REAL)) + content[at + 4 :]


def hostile_file(rng: Random) -> tuple[str, str, bytes]:
    """What is to read it, its name, its content."""
    reader = rng.choice(["scan"] * 6 + ["mask"] * 2 + ["checkpoint"] * 3 + ["weights"])
    content = rng.choice(valid_files()[reader])
    if content.startswith(b"PK"):
        return reader, "weights.npz", any_bytes(content, rng)
    if reader in ("checkpoint", "weights"):
        return reader, "weights.safetensors", rng.choice([words, words, weights, any_bytes])(content, rng)
    for _ in range(rng.choice([1, 1, 2])):
        content = rng.choice([header] * 5 + [voxels] * 2 + [any_bytes] * 2)(content, rng)
    if rng.choice([True, False, False]):
        return reader, "scan.nii", content
    content = gzip.compress(content, 1, mtime=0)
    return reader, "scan.nii.gz", rng.choice([any_bytes(content, rng), content, content])
