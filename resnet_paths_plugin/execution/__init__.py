"""How a study is run: as tasks, in this process or on an executor, kept in a checkpoint as they finish.

What the tasks compute is the analyzers' business; results do not depend on who computes them, or in which order.
"""

from resnet_paths_plugin.execution.checkpoint import TaskFolder
from resnet_paths_plugin.execution.options import RunOptions
from resnet_paths_plugin.execution.study_run import StudyRun
from resnet_paths_plugin.execution.tasks import Arrays, Samples, Stage, Work

__all__ = ["Arrays", "RunOptions", "Samples", "Stage", "StudyRun", "TaskFolder", "Work"]
