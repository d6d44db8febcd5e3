"""Files made by hand to harm who opens them; run as a script, it opens them where memory is short."""

import base64
import os
import pickle
import re
import resource
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import h5py
import netCDF4
import numpy as np
import torch

from resnet_paths_plugin.cli.images import read_images
from resnet_paths_plugin.cli.preprocessing import InputBatches
from resnet_paths_plugin.plugins.model_description import Preprocessing
from resnet_paths_plugin.plugins.weights import load_weights
from resnet_paths_plugin.results import datasets

MEMORY = 160 * 2**20
"""Bytes beyond what the imports take; each of the files below asks for several times as many."""

# HDF5 files made by h5py, with the attribute schema_version = 1. The values of "x", 4 of float64, are those of the file
# secret.bin, by external storage.
EXTERNAL = (
    "c-rgqaB<`1lHy_j0S*oZ76t(ZWbhvfIM`76F!=;1%?PDCp!5nRm^d?7P68?}05xBM8N!c%iiZTbx`I^yM*}c>4zNII4u(-M5`l-SV*qk`fu+(D"
    "OsMKA(9)v^h4u<UZ9-4iJPa04d-#ED4u<07jMUu3__EZZ;>`R!p!+yrY1IM6JqVf&!e)f=AvuJR5h4Ih?r@qJC=ZemRIrDeYr@T7@*kRySb?G-"
    "c_t<%umS808el#IGct7G$Uh1UFmZ_e%#5&{r+}t1f-dnZffi0HSWwj!rzRJrmgpsA=0W(ue*P{X|H1rK!91E*$N>OPRYZg"
)
# Here they are those of "x" in secret.h5, by a virtual layout.
VIRTUAL = (
    "c-rgqaB<`1lHy_j0S*oZ76t(ZWbhvf7$ng6P>=wn8KHCslwQFE6K4j?LA3)-hnTOx4B<yW#Y2KzT|uh<qXC#b9V`%<gJBemMBw4-7=WB!V5#&3"
    "6RNrjwDjmfp}m4oo6yrW4}%5N9)2L3gP}M%BQ-ZMzAUw<I5R&F=spfuT6I8i4}xZcuo+=|NDg6Sga|;BJDg?)%7bJC73|^Wns76i{D<ZvR-h<Io"
    "{5=>5t2_J?q*?zWf_RMLQpP<_uh^*n}MNWP{ePrpT7$u&{eSfUBNt>=10LOpfzxJ_V-~#Do|nNlP3dOfmNKET$Ea(mthJlVwsV|L4XN~F92mT!V4}"
    "2hKKDzpV91{z&{%HqhJ(_f>AIEM!_f;1*2dTjDk@x3Pu6F001#WKpp"
)
# Here "x" is of a type that netCDF lacks: float16, a scalar of it, and 2 of long double, which are 0x41 all through.
HALF = (
    "c-rgqaB<`1lHy|K;9!7(|4_gJ6*7Q|$7$+y_<OhnG4X6+QUZ%GGoooh2V6`HU?rk53@i}!xK#3hZDD5MXW#)TEl$oz%}tCiOD!tS%+F&G06GQY8V3"
    "d@APKXVO$0<TvcR0qSn(dl<Y7Pq&!_Ek1UsLRfsqlYkBO0ykqIgXqnSk*7zGvhp?m=bE>;FEejtk#=nrOY4gm%R7ABxZCZHLx@Y=*M1cAa2)-;AuF"
    "bYP&C>RAJ7}zn`0RRf~OvC"
)
HALF_SCALAR = (
    "c-rgqaB<`1lHy|K;9!7(|4_gL6*7Q|D@M6^`+K+qG4X6+QUZ%GGoooh2V6`HU?rk53@i}!xK#3hZDD5MXW#)TEl$oz%}tCiOD!tS%+F&G06GQY8V3"
    "d@APKXVO$0<TvcR0qSn(dl<Y7Pq&!_Ek1UsLRff1wwWDc_k1EZh<KbXzHAi%)I%D}}BWU&I>&CJCi1a>ks7?@xN9bg#ppuJc<gkcnnf>AIEM!^UMb"
    "^s$7Ofv"
)
LONG_DOUBLE = (
    "c-rgqaB<`1lHy|K;9!7(|4^U+6*7Q|3rqgD^!IQHV&d7tqy!dWW<=A14!D>Yz)D1A7+4_cajE11+rrGi&%gsxTAZAbnwuD3mReMtnV-iX0CWn(H4Y"
    "3+KoVvzn+S+xWPv%IvEn_9$-{sKo=@B72zEXr10y3)9}^=ZBNJ2(Ml*{rFbXpGGYEir0SpfO3=aS885mfB{$S?j01C4(0W~rSFfzcxYZJo|1j!#n-"
    "!P1VQ7{Td!6+EHz>xp|0O_q)od"
)
# Here it is of a type of 3 bytes that say nothing.
OPAQUE = (
    "c-rgqaB<`1lHy|K;9!7(|4_gT6*7Q|EA*;c`+K+qG4X6+QUZ%GGoooh2V6`HU?rk53@i}!xK#3hZDD5MXW#)TEl$oz%}tCiOD!tS%+F&G06GQY8V3"
    "d@APKXVO$0<TvcR0qSn(dl<Y7Pq&!_Ek1UsLRff1wwWDd}ajG|zB85mfBZe`};5CS_B>UCzA<}(b#3jCeJ5X&$MM!_f;1*2f(g2bd`01}8zK>"
)
# Here it is 100,000 of float64 that are compressed by LZF, a filter of h5py's own.
LZF = (
    "c-rmSJxjw-6vpv$?oA~mS5#=1;!t#Saj3J3rFJX$1w^Ex;0st05gh~(q|VNM2xn(^7e_ZoKSI1odPM?GE`tAuA9>@PoSQ6Ja@*^4CzEDk<5)tnaYh"
    "T}`QrHc>&e|!zt`C??$OK@SFBcAs!5C#C5>5$%KD!wT`|SVl(@WfxV<|#*xEcD91r)74rSV}u3X@X7{3j3C+hiDqp);6`v`|lDtW(uS}m5ZqU!sMs"
    "y^J5cM5x37oBM>f6Z#A($1_%%|C}t)268JzKr~QEBog=#Y5Hd)+Hx#E3Y%g`kVQF9nF6m9^US?{E0kYysQf$gpmIm|LuCq0000000000000000Q|y"
    "Q{vXaKR!@G!"
)

# Here the group "g" holds the file's root as "again", by a hard link and by a soft one.
HARD_CIRCLE = (
    "c-rgqaB<`1lHy|K;9!7(|4^`w5yCfsifb?S2=(`H31Z^e!lVQiVP-_rf)2Qt7{E$IWf)i>>T#*$0o%gNz|X(~Qd*pxk(!$rUzS=_oSC1;AOLh7#DN"
    "YBOh6K5FPjL6WMqLkoiY7AlqJRrwvmYeu3F}N5f_=xXOlp+hBYxgF*6SqE({3_bO6q!lWPGuJZ3u"
)
SOFT_CIRCLE = (
    "c-rgqaB<`1lHy|K;9!7(|4^`w5yCfsifb?S2=(`H31Z^e!lVQiVP-_rf)2Qt7{E$IWf)i>>T#*$0o%gNz|X(~Qd*pxk(!$rUzS=_oSC1;AOLh7#DN"
    "YBOh6K5FPjL6WMqLkoiY7AjLE}*214xD@sR0!s5Lw=^$e_u>4}+nj12k=DGYQ1Uz4|d1^^hSXG;"
)


class Canary:
    """Unpickling it makes a folder of that name."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def model():
    return torch.nn.Sequential(torch.nn.Linear(3, 2))


def open_file(path):
    """Open a file, or folder of class folders, as the command line would."""
    if path.suffix == ".nc":
        return datasets.load(path)
    if path.suffix == ".safetensors":
        return load_weights(model(), path)
    images = read_images(path)
    wanted = Preprocessing(size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)
    return list(InputBatches(images, images.labels, wanted))


# netCDF


def netcdf(make):
    def write(path):
        with netCDF4.Dataset(path, "w") as file:
            file.schema_version = np.int64(1)
            make(file)

    return write


def variable(kind, length, **options):
    def make(file):
        file.createDimension("d", length)
        file.createVariable("x", kind, ("d",), fill_value=False, **options)

    return netcdf(make)


def compressed(file):
    file.createDimension("d", 10**6)
    file.createVariable("x", "f8", ("d",), zlib=True)[:] = np.zeros(10**6)


def compound(file):
    file.createCompoundType(np.dtype([("a", "i4")]), "pair")


def enumeration(file):
    file.createEnumType(np.uint8, "fruit", {"apple": 1})


def unaligned(file):
    for group, length in ((file, 3), (file.createGroup("g"), 4)):
        group.createDimension("d", length)
        group.createVariable("d", "f8", ("d",), chunksizes=(length,))[:] = np.arange(length)


def deep(file):
    file.createGroup("/".join(["g"] * 40))


def long_and_many(file):
    file.createDimension("d", 20_000)
    texts = np.array(["short"] * 20_000, dtype=object)
    texts[7] = "long" * 250_000
    file.createVariable("x", str, ("d",), chunksizes=(len(texts),))[:] = texts


def many_long(file):
    """Sixty variables, of which each alone would take less than any file may."""
    file.createDimension("d", 1500)
    for number in range(60):
        texts = np.array(["b"] * 1500, dtype=object)
        texts[0] = "a" * 8000
        file.createVariable(f"x{number}", str, ("d",), chunksizes=(len(texts),))[:] = texts


def one_text_for_all(path):
    """2,000 entries that point to one text of 500 KB."""
    length = 500_003

    def make(file):
        file.createDimension("d", 2000)
        texts = np.array(["b" * 77] * 2000, dtype=object)
        texts[0] = "a" * length
        file.createVariable("x", str, ("d",), chunksizes=(len(texts),))[:] = texts

    netcdf(make)(path)
    path.write_bytes(pointed_to_one(path.read_bytes(), length, 77, 2000))


def pointed_to_one(content, length, other, count):
    """The file's content, with all texts of a list pointing to the first, by their lengths."""
    entry = re.compile(
        re.escape(struct.pack("<I", length)) + b"." * 12 + re.escape(struct.pack("<I", other)), re.DOTALL
    )
    (start,) = (found.start() for found in entry.finditer(content))
    return content[:start] + content[start : start + 16] * count + content[start + 16 * count :]


def one_text_for_an_attribute(path):
    """An attribute of 1,000 texts that all are one text of 1 MB."""
    netcdf(lambda file: file.setncattr_string("x", ["a" * 1_000_003] + ["b" * 77] * 999))(path)
    path.write_bytes(pointed_to_one(path.read_bytes(), 1_000_003, 77, 1000))


def packed(text):
    return lambda path: path.write_bytes(zlib.decompress(base64.b85decode(text)))


def hdf5(make):
    """A file with the attribute that every result has, for what netCDF-C itself would not write."""

    def write(path):
        with h5py.File(path, "w") as file:
            file.attrs["schema_version"] = np.int64(1)
            make(file.id)

    return write


def long_fixed_text(file):
    """One text of a fixed length of 2 GiB, none of which is written."""
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(2**31 - 1)
    h5py.h5d.create(file, b"x", kind, h5py.h5s.create_simple((1,)))


def large_chunk(file):
    """No values, of which 3 GiB would be read at once."""
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_chunk((3 * 2**27,))
    empty = h5py.h5s.create_simple((0,), (h5py.h5s.UNLIMITED,))
    h5py.h5d.create(file, b"x", h5py.h5t.NATIVE_DOUBLE, empty, created)


def groups_of_two_names(file):
    """2^30 ways through 30 groups."""
    group = h5py.h5g.open(file, b"/")
    for _ in range(30):
        inner = h5py.h5g.create(group, b"a")
        group.links.create_hard(b"b", group, b"a")
        group = inner


def many_links(file):
    group = h5py.h5g.open(file, b"/")
    h5py.h5g.create(group, b"g")
    for number in range(100_001):
        group.links.create_soft(f"{number}".encode(), b"g")


def name_of_bytes(file):
    h5py.h5d.create(file, b"\xff", h5py.h5t.NATIVE_DOUBLE, h5py.h5s.create_simple((1,)))


def number_of_dim(path):
    """A dim whose number is the largest there is, for which netCDF-C ends the process."""
    variable("f8", 4)(path)
    with h5py.File(path, "r+") as file:
        file["d"].attrs["_Netcdf4Dimid"] = np.int32(2**31 - 1)


# npz


def header(shape, dtype="|u1", version=(1, 0)):
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return np.lib.format.magic(*version) + struct.pack("<H" if version == (1, 0) else "<I", len(text)) + text


def npz(packing=zipfile.ZIP_STORED, **members):
    labels = header((1,), "<i8") + bytes(8)

    def write(path):
        with zipfile.ZipFile(path, "w", packing) as archive:
            for name, content in ({"labels": labels} | members).items():
                archive.writestr(f"{name}.npy", content)

    return write


def claims_8_gib(path):
    """An archive whose directory says 8 GiB of the images."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", header((2**33,)) + b"abc")
        archive.writestr("labels.npy", header((1,), "<i8") + bytes(8))
        archive.filelist[0].file_size = archive.filelist[0].compress_size = 2**33 + 80


def bomb(path):
    npz(zipfile.ZIP_DEFLATED, images=header((2**28, 1, 1, 1)) + bytes(2**28))(path)


def encrypted(path):
    npz(images=header((1, 2, 2, 3)) + bytes(12))(path)
    content = bytearray(path.read_bytes())
    place = -1
    while (place := content.find(b"PK\x01\x02", place + 1)) >= 0:
        content[place + 8] |= 1
    path.write_bytes(content)


# safetensors


def safetensors_file(text, data=b"", length=None):
    text = text.encode()
    return lambda path: path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def tensor(dtype, shape, size):
    return safetensors_file(
        f'{{"0.weight": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": [0, {size}]}}}}', bytes(24)
    )


def complex_weights(path):
    import safetensors.torch

    safetensors.torch.save_file({"0.weight": torch.zeros(2, 3, dtype=torch.complex64), "0.bias": torch.ones(2)}, path)


def large_weights(path):
    """A sparse file that is well-formed, of a tensor that the model does not have."""
    size = 2**30
    safetensors_file(f'{{"other": {{"dtype": "U8", "shape": [{size}], "data_offsets": [0, {size}]}}}}')(path)
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size + size)


# images


def image(content):
    def write(path):
        (path / "cat").mkdir(parents=True)
        (path / "cat" / "0.png").write_bytes(content)

    return write


def png(width, height, data=b"", colour=2):
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


STRIP = png(1, 10**6, zlib.compress(bytes(2 * 10**6)), colour=0)

FILES = {
    "values.nc": (variable("f8", 2**37, chunksizes=(1024,)), r"declares 1\.0 TiB of values and has [\d.]+ KiB"),
    "chunk.nc": (variable("f8", 10, chunksizes=(10,)), None),
    "compressed.nc": (netcdf(compressed), r"variable '/x' is compressed \(zlib\).*nccopy -d 0"),
    "contiguous.nc": (variable("f8", 4, contiguous=True), None),
    "external.nc": (packed(EXTERNAL), "the values of '/x' lie in another file"),
    "virtual.nc": (packed(VIRTUAL), "the values of '/x' lie in another file"),
    "half.nc": (packed(HALF), "'/x' holds numbers of a kind that netCDF does not have"),
    "half-scalar.nc": (packed(HALF_SCALAR), "'/x' holds numbers of a kind that netCDF does not have"),
    "long-double.nc": (packed(LONG_DOUBLE), "'/x' holds numbers of a kind that netCDF does not have"),
    "opaque.nc": (packed(OPAQUE), "variable 'x' has unsupported datatype"),
    "lzf.nc": (packed(LZF), "or compressed by a filter that netCDF does not name"),
    "unaligned.nc": (netcdf(unaligned), "is not aligned with its parents"),
    "compound.nc": (netcdf(compound), "defines types of its own in group '/'"),
    "enumeration.nc": (netcdf(enumeration), "defines types of its own in group '/'"),
    "deep.nc": (netcdf(deep), "over 32 groups inside each other"),
    "long.nc": (netcdf(long_and_many), "texts up to variable '/x' would take more memory than a file of"),
    "many-long.nc": (netcdf(many_long), r"texts up to variable '/x\d+' would take more memory than a file of"),
    "one-for-all.nc": (one_text_for_all, "texts up to variable '/x' would take more memory than a file of"),
    "fixed-text.nc": (hdf5(long_fixed_text), r"the type of variable '/x' takes 2\.0 GiB"),
    "large-chunk.nc": (hdf5(large_chunk), r"a chunk of variable '/x' takes 3\.0 GiB"),
    "two-names.nc": (hdf5(groups_of_two_names), "its group '[/ab]+' is another one too, or lies inside itself"),
    "many-links.nc": (hdf5(many_links), "has over 100,000 links"),
    "bytes.nc": (hdf5(name_of_bytes), r"the name b'\\xff' in it is no UTF-8"),
    "number-of-dim.nc": (number_of_dim, "attribute '_Netcdf4Dimid' of '/d' is 2147483647"),
    "classic.nc": (lambda path: path.write_bytes(b"CDF\x01" + bytes(60)), "expected a file made by save, which is"),
    "shape.npz": (npz(images=header((2**40, 1, 1, 1)) + b"abc"), r"'images' is damaged: it declares shape .*1\.0 TiB"),
    "text.npz": (
        npz(images=header((1, 1, 1, 3)) + b"abc", classes=header((), "<U99999999") + bytes(4)), "'classes' is damaged"
    ),
    "nothing.npz": (npz(images=header((1, 1, 1, 3)) + b"abc", classes=header((10**12,), "|V0")), "'classes' is dam"),
    "negative.npz": (npz(images=header((-1, -3, 1, 1)) + b"abc"), "'images' is damaged: it declares shape"),
    "size.npz": (claims_8_gib, r"declares 8\.0 GiB of arrays, more than 100 times as much.*numpy\.savez"),
    "bomb.npz": (bomb, r"declares 256\.0 MiB of arrays, more than 100 times as much.*numpy\.savez"),
    "encrypted.npz": (encrypted, "'images' is encrypted"),
    "bzip2.npz": (npz(zipfile.ZIP_BZIP2, images=header((1, 1, 1, 3)) + b"abc"), "a method that numpy does not write"),
    "object.npz": (npz(images=header((1,), "|O") + pickle.dumps([])), "'images' holds pickled objects, which could"),
    "version.npz": (npz(images=header((1, 1, 1, 3), version=(3, 0)) + b"abc"), "a version that holds no plain array"),
    "classes.npz": (
        npz(images=header((1, 1, 1, 3)) + b"abc", classes=header((2_000_000,), "|S1") + bytes(2_000_000)),
        "names 2,000,000 classes, more than 1,000,000",
    ),
    "length.safetensors": (safetensors_file("{}", length=2**62), "no complete safetensors file"),
    "long.safetensors": (safetensors_file("{}", length=1000), "no complete safetensors file"),
    "offsets.safetensors": (tensor("F32", [2, 3], 2**40), "no complete safetensors file"),
    "shape.safetensors": (tensor("F32", [2**40, 3], 24), "no complete safetensors file"),
    "overflow.safetensors": (tensor("F32", [2**63, 2], 0), "no complete safetensors file"),
    "four-bits.safetensors": (
        safetensors_file(
            '{"0.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},'
            '"0.bias":{"dtype":"F4","shape":[2],"data_offsets":[24,25]}}',
            bytes(25),
        ),
        r"0\.bias torch\.float4_e2m1fn_x2 instead of torch\.float32 of another kind",
    ),
    "complex.safetensors": (complex_weights, r"0\.weight torch\.complex64 instead of torch\.float32 of another kind"),
    "pixels": (image(png(30_000, 30_000)), r"0\.png cannot be read as an image: .*decompression bomb"),
    "many-pixels": (image(png(10_000, 10_000)), r"0\.png cannot be read as an image: .*decompression bomb"),
    "short": (image(png(200, 200, zlib.compress(bytes(100)))), r"0\.png cannot be read as an image"),
    "strip": (image(STRIP), r"0\.png is 1000000 x 1 pixels and would be resized to 16000000 x 16"),
}  # fmt: skip
"""What to write, and the message that is expected; None for a file that is no trap."""

BEYOND_CHECKS = {
    "hard-circle.nc": (packed(HARD_CIRCLE), "lies inside itself"),
    "soft-circle.nc": (packed(SOFT_CIRCLE), "is a link to '/'"),
    "attribute.nc": (one_text_for_an_attribute, "is damaged"),
}
"""What to write, and what is said of it; netCDF-C takes memory for these before anything can be asked of it."""


def main(folder):
    """Open all files of the folder where memory is short, and say of each what was told."""
    torch.set_num_threads(1)
    open_file(folder / "chunk.nc")  # what is imported late is no file's memory
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + MEMORY,) * 2)
    try:
        np.ones(2 * MEMORY, np.uint8)
    except MemoryError:
        sys.stdout.write("limited\tmemory\n")
    for name in FILES:
        try:
            open_file(folder / name)
        except Exception as error:  # noqa: BLE001 - which one it is, is what the test asks
            sys.stdout.write(f"{name}\t{type(error).__name__}: {' '.join(str(error).split())}\n")
        else:
            sys.stdout.write(f"{name}\topened\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
