"""How much memory a file may ask for: what it declares is compared with these limits before any of it is taken.

Numbers and their reasons only; each loader checks the files of its own format.
"""

SMALL = 64 * 2**20
"""Bytes that a file of any size may take in memory."""

LARGEST_RATIO = 100
"""Bytes that one byte of a larger file may become; photographs become 1 to 3, drawings on an even ground some 20."""

LARGEST_IMAGE = 89_478_485
"""Pixels of an image after it is resized; before it is, Pillow's own limit holds, which is the same."""

MOST_CLASSES = 1_000_000
"""Names of classes that come with images."""

LONGEST_OPENING = 60
"""Seconds of processor time to open a netCDF file and read its attributes, which takes a fraction of one."""

LONGEST_WAIT = 300
"""Seconds in all for the same, on a machine that is busy or a network folder that is slow."""

DEEPEST_GROUPS = 32
"""Groups inside each other in a netCDF file."""

MOST_LINKS = 100_000
"""Groups, variables and dims of a netCDF file together; a result of all studies has some 500."""

MOST_ATTRIBUTES = 1_000_000
"""Attributes of all of these together."""

LARGEST_DIRECTORY = 2**20
"""Bytes of the directory of an npz file, which names its arrays; three arrays take 200."""

LARGEST_HEADER = 2**24
"""Bytes of the header of a safetensors file, which names its tensors; 100,000 tensors take 8 million."""

MOST_SCANS = 100
"""Passes over the pixels of a JPEG file, each of which takes as long as a plain file; progressive ones have some 10."""


def largest(file_size: int) -> int:
    """Return how many bytes a file of that many bytes may take in memory."""
    return max(SMALL, LARGEST_RATIO * file_size)


def format_bytes(size: int) -> str:
    """Return a number of bytes for a message, such as '1.5 GiB'."""
    if size < 1024:
        return f"{size} bytes"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"
