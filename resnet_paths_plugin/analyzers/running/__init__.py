"""How a study is run: as units of work, in this process or on an executor, kept in a checkpoint as they finish.

What the units compute is the analyzers' business; results do not depend on who computes them, or in which order.
"""

from resnet_paths_plugin.analyzers.running.checkpoint import UnitFolder
from resnet_paths_plugin.analyzers.running.options import RunOptions
from resnet_paths_plugin.analyzers.running.study_run import StudyRun
from resnet_paths_plugin.analyzers.running.units import Arrays, Samples, Stage, Work

__all__ = ["Arrays", "RunOptions", "Samples", "Stage", "StudyRun", "UnitFolder", "Work"]
