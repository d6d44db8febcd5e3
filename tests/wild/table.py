"""One line for each model: read, and written whole or not at all."""

import csv
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from zoo.real.examine import FUSED

PATH = Path(__file__).with_name("models.csv")
COMPLETE = 1e-5
"""Largest relative difference of summed path gradients from the ordinary gradient, in float32."""
COMPLETE_FLOAT64 = 1e-12
"""The same in float64."""
AGREE = 1e-5
"""Largest relative difference of the network's gradients from the model's."""
_PARSED = {int: int, float: float, bool: "True".__eq__, str: str}


@dataclass(slots=True)
class Line:
    """What was found of one model.

    Attributes:
        library, version, model: which model.
        declared: residual blocks by its code.
        found: residual blocks detected; -1 where the model could not be captured.
        identical: whether outputs equal the model's bit for bit.
        lesions: blocks whose lesion ran.
        finite: whether all outputs of lesions were finite.
        least_change: the least change of an output by a lesion, relative to that output's largest element.
        zeroed: lesions whose output is the model's with one of its modules made to return zeros.
        completeness: largest relative difference, over samples, of the summed path gradients from the ordinary one.
        completeness_float64: the same in float64, where float32 does not suffice.
        gradient: largest difference of the network's gradients (inputs, parameters) from the model's, relative to the
            largest gradient of its kind.
        tap_gradient: of integer inputs, the relative difference of the summed path gradients at the first block's
            source from the model's gradient at the nearest module's output: small where that is the source, says
            nothing where the source is no module's output.
        untouched: whether the model was as before afterwards.
        refusal: class and text of the error with which the model was refused.
        seconds: what it all took.
        note: everything that is not as it should be.
    """

    library: str
    version: str
    model: str
    declared: int = -1
    found: int = -1
    identical: bool = False
    lesions: int = 0
    finite: bool = False
    least_change: float = float("nan")
    zeroed: int = 0
    completeness: float = float("nan")
    completeness_float64: float = float("nan")
    gradient: float = float("nan")
    tap_gradient: float = float("nan")
    untouched: bool = False
    refusal: str = ""
    seconds: float = 0.0
    note: str = ""

    @property
    def computes(self):
        """Whether all that was computed is as it should be, whatever the number of blocks."""
        complete = self.completeness < COMPLETE or self.completeness_float64 < COMPLETE_FLOAT64
        whole = not self.found or (self.lesions == self.found and self.finite and complete)
        same = self.identical or FUSED in self.note
        return self.found >= 0 and same and self.gradient < AGREE and self.untouched and whole

    @property
    def passes(self):
        """Whether everything is as it should be."""
        return self.computes and self.found == self.declared


def read(path=PATH):
    """Return the lines of a table by library and model; of none if there is no such file."""
    if not path.exists():
        return {}
    kinds = {field.name: _PARSED[field.type] for field in fields(Line)}
    with path.open(newline="", encoding="utf-8") as file:
        lines = [Line(**{name: kinds[name](value) for name, value in row.items()}) for row in csv.DictReader(file)]
    return {(line.library, line.model): line for line in lines}


def write(lines, path=PATH):
    """Write a table, sorted."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Line)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(lines[key]) for key in sorted(lines))
    temporary.replace(path)
