"""Damaged files of every format that is read, made from valid ones by a seed; run as a script, it opens them.

A script of its own, since a library in C may crash on one: then the process that started it says which.
"""

import faulthandler
import io
import json
import os
import random
import resource
import signal
import struct
import sys
import warnings
import zipfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import safetensors.torch
import synthetic_studies as synthetic
import torch
from PIL import Image

from resnet_paths_plugin.cli.images import read_images
from resnet_paths_plugin.cli.preprocessing import InputBatches
from resnet_paths_plugin.errors import ResnetPathsError
from resnet_paths_plugin.files import file_seals
from resnet_paths_plugin.plugins.model_description import Preprocessing
from resnet_paths_plugin.plugins.weights import load_weights
from resnet_paths_plugin.results import datasets
from resnet_paths_plugin.results.block_coords import block_coords

SECONDS = 20
"""Processor time of one case, after which it counts as endless."""
WALL_SECONDS = 300
MEMORY = 1 << 29
"""Bytes of address space for all cases of a process, beyond what its imports take."""

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**63, 2**64 - 1)
IMAGE_KINDS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM")


# Valid files


@cache
def valid_netcdf(folder):
    sample, made = np.arange(5), synthetic.blocks(3)
    study = datasets.build(
        {"loss": (("lesion", "sample"), np.ones((3, 5))), "correct": (("lesion", "sample"), np.ones((3, 5), bool))},
        coords={"lesion": ("lesion", ["a", "b", "a+b"]), "sample": ("sample", sample), **block_coords(made)},
        attrs={"schema_version": 1, "title": "A study", "seed": 0, "note": "übung"},
    )
    small = datasets.build({"error": ((), 0.5)}, coords={}, attrs={"schema_version": 1})
    return datasets.save(datasets.build_tree({"one": study, "two": small}), folder / "valid.nc").read_bytes()


def model():
    return torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3))


def valid_safetensors():
    return safetensors.torch.save(model().state_dict())


def arrays():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3), dtype=np.uint8)
    return {"images": pixels, "labels": np.array([0, 1, 0]), "classes": np.array(["cat", "dog"])}


def valid_npz(compressed):
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays())
    return file.getvalue()


def valid_image(kind, colour):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    options = {"compression": "tiff_lzw"} if kind == "TIFF" and colour else {}
    Image.fromarray(pixels if colour else pixels[..., 0]).save(file, kind, **options)
    return file.getvalue()


# Damage that knows nothing of the format


def flipped(rng, data):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def truncated(rng, data):
    return data[: rng.randrange(len(data))]


def spliced(rng, data):
    length = rng.randrange(1, max(2, len(data) // 4))
    source, target = rng.randrange(len(data)), rng.randrange(len(data))
    return data[:target] + data[source : source + length] + data[target + rng.choice([0, length]) :]


def extreme(rng, data):
    """Whole numbers of 1 to 8 bytes, at any place, become the ones at the ends of their range."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 3])):
        size, order = rng.choice([1, 2, 4, 8]), rng.choice(["little", "big"])
        place = rng.randrange(max(1, len(data) - size))
        data[place : place + size] = (rng.choice(EXTREMES) % 256**size).to_bytes(size, order)
    return bytes(data)


ANY_FORMAT = (flipped, truncated, spliced, extreme)


# Damage that keeps checksums right, so that it is not found at the door


def edited_netcdf(rng, data):
    """Bytes of object headers, whose checksums are made anew."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 2])):
        start, end = rng.choice(object_headers(bytes(data)))
        data[start:end] = rng.choice([flipped, extreme])(rng, bytes(data[start:end]))
        header = data.rfind(b"OHDR", 0, start)
        data[end : end + 4] = struct.pack("<I", lookup3(bytes(data[header:end])))
    return bytes(data)


def object_headers(data):
    """Where the messages of the object headers (version 2) begin and end; a checksum follows each."""
    found, place = [], data.find(b"OHDR")
    while place >= 0:
        flags = data[place + 5]
        start = place + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        size = int.from_bytes(data[start : start + width], "little")
        end = start + width + size
        if data[end : end + 4] == struct.pack("<I", lookup3(data[place:end])):
            found.append((start + width, end))
        place = data.find(b"OHDR", place + 4)
    return found


def lookup3(data):
    """Jenkins' hash (2006), by which HDF5 checks its metadata."""

    def turn(value, bits):
        return (value << bits | value >> (32 - bits)) & 0xFFFFFFFF

    a = b = c = (0xDEADBEEF + len(data)) & 0xFFFFFFFF
    while len(data) > 12:
        words = struct.unpack_from("<3I", data)
        data = data[12:]
        a, b, c = ((one + word) & 0xFFFFFFFF for one, word in zip((a, b, c), words, strict=True))
        for bits in (4, 6, 8, 16, 19, 4):
            a = (a - c) & 0xFFFFFFFF ^ turn(c, bits)
            c = (c + b) & 0xFFFFFFFF
            a, b, c = b, c, a
    if not data:
        return c
    words = struct.unpack("<3I", data.ljust(12, b"\0"))
    a, b, c = ((one + word) & 0xFFFFFFFF for one, word in zip((a, b, c), words, strict=True))
    for bits in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - turn(b, bits)) & 0xFFFFFFFF
        a, b, c = b, c, a
    return b  # the last one mixed, after the turn of the three


def edited_safetensors(rng, data):
    """Shapes, offsets, names and types of numbers; the length of the header fits them."""
    (length,) = struct.unpack_from("<Q", data)
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    for _ in range(rng.choice([1, 2])):
        name = rng.choice(sorted(header))
        entry, numbers = header[name], rng.choice(["shape", "data_offsets"])
        change = rng.choice(["number", "number", "dtype", "name", "field", "more"])
        if not isinstance(entry, dict) or len(entry) < 3:
            continue
        if change == "number" and entry[numbers]:
            entry[numbers][rng.randrange(len(entry[numbers]))] = rng.choice([*EXTREMES, -1, 1.5, "1", None])
        elif change == "dtype":
            entry["dtype"] = rng.choice(["F64", "I8", "BOOL", "C64", "F8_E8M0", "F4", "BF16", "U64", "F6_E2M3", "?"])
        elif change == "name":
            header[rng.choice(["\x1b[31m", "", "a" * 1000, "__metadata__"])] = header.pop(name)
        elif change == "field":
            entry.pop(rng.choice(sorted(entry)))
        elif change == "more":
            header["more"] = {"dtype": "F32", "shape": [0, rng.choice(EXTREMES)], "data_offsets": [len(rest)] * 2}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def edited_npz(rng, data):
    """What is in the archive, packed anew, and so with the right checksum."""
    packing = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", packing) as new:
        chosen = rng.choice(old.namelist())
        for name in old.namelist():
            content = old.read(name)
            if name == chosen:
                end = content.index(b"\n") + 1
                part = rng.choice([flipped, spliced, extreme, edited_numbers])(rng, content[:end])
                content = rng.choice([part, part, part[:end].ljust(end)]) + content[end:]
            new.writestr(name, content)
    return rng.choice([lambda _, whole: whole, lambda _, whole: whole, extreme])(rng, file.getvalue())


def edited_numbers(rng, data):
    """Shapes and types of an npy header."""
    text = data.decode("latin-1")
    old, new = rng.choice(
        [("(3", f"({rng.choice(EXTREMES)}"), ("(3", "(-3"), ("|u1", "|O"), ("|u1", "|V0"), ("<i8", "<U999999999"),
         ("<i8", "|S0"), ("(3", "(" * 200 + "3"), ("3", "1" * 300), ("False", "True"), ("<U3", "<U0"), ("(2", "(10**9")]
    )  # fmt: skip
    return text.replace(old, new).encode("latin-1")


def edited_png(rng, data):
    """One chunk, whose checksum is made anew."""
    if not data.startswith(b"\x89PNG"):
        return extreme(rng, data)
    chunks, place = [], 8
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        chunks.append([data[place + 4 : place + 8], data[place + 8 : place + 8 + length]])
        place += 12 + length
    chosen = rng.choice(chunks)
    if chosen[1]:
        chosen[1] = rng.choice(ANY_FORMAT)(rng, chosen[1])
    chunks += [chunks[0]] * rng.choice([0, 0, 1])
    return data[:8] + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


# Opening them


def open_netcdf(path):
    found = datasets.load(path)
    if file_seals.is_sealed(path):
        expected = datasets.load(path.with_name("valid.nc"))
        assert found.equals(expected), "numbers or texts are wrong"


def open_safetensors(path):
    load_weights(model(), path)


def open_images(path):
    images = read_images(path)
    for _ in InputBatches(images, images.labels, Preprocessing(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)):
        pass


def write_case(kind, case, folder):
    """Write the damaged file of that number, and return what to open."""
    rng = random.Random(f"{kind} {case}")  # noqa: S311 - damage is no secret
    if kind == "netcdf":
        # A name for each, since netCDF4 does not close a file that it fails to open, and HDF5 then reads it no more.
        valid, edited, name = valid_netcdf(folder), edited_netcdf, f"{case}.nc"
    elif kind == "safetensors":
        valid, edited, name = valid_safetensors(), edited_safetensors, "case.safetensors"
    elif kind == "npz":
        valid, edited, name = valid_npz(compressed=case % 2), edited_npz, "case.npz"
    else:
        image = IMAGE_KINDS[case % len(IMAGE_KINDS)]
        valid, edited, name = valid_image(image, colour=rng.random() < 0.7), edited_png, "images/cat/0.png"
    if kind == "netcdf" and case % 2:
        valid = valid[: -file_seals.SIZE]  # so that the damage gets past the seal
    if case >= 0:
        # Half of the cases pass the first checks.
        valid = rng.choice([*ANY_FORMAT, *[edited] * len(ANY_FORMAT)])(rng, valid)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(valid)
    return folder / "images" if kind == "images" else path


OPENERS = {"netcdf": open_netcdf, "safetensors": open_safetensors, "npz": open_images, "images": open_images}


def outcome(kind, path):
    """'opened', 'told', or what went wrong."""
    try:
        OPENERS[kind](path)
    except ResnetPathsError as error:
        causes = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        return "told" if not isinstance(causes[-1], MemoryError) else f"took too much memory: {error}"
    except BaseException as error:  # noqa: BLE001 - which ones there are is the question
        return f"{type(error).__name__}: {error}"
    return "opened"


def main(kind, first, last, folder):
    """Open cases one by one; each is announced, so that after a crash it is known which it was."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = Path(folder)
    faulthandler.enable()
    faulthandler.register(signal.SIGPROF, chain=True)
    write_case(kind, -1, folder)
    # What is loaded late would count as a case's memory.
    print(-1, outcome(kind, write_case(kind, -1, folder)), flush=True)  # noqa: T201
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + MEMORY,) * 2)
    for case in range(int(first), int(last)):
        path = write_case(kind, case, folder)
        print(case, end=" ", flush=True)  # noqa: T201
        # Their default actions end the process, also within a library.
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
        print(" ".join(outcome(kind, path).split()), flush=True)  # noqa: T201
        if kind == "netcdf":
            path.unlink()


if __name__ == "__main__":
    main(*sys.argv[1:])
