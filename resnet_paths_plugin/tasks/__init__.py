"""What models are for: how outputs and targets are read, and what is measured of them, by task."""

from resnet_paths_plugin.tasks.measures import mean_iou, retrieval, squared_error
from resnet_paths_plugin.tasks.readout import Readout
from resnet_paths_plugin.tasks.task import TASKS, Task, task_of

__all__ = ["TASKS", "Readout", "Task", "mean_iou", "retrieval", "squared_error", "task_of"]
