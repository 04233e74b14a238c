"""What is learned: data, models, training, metrics. Importing it loads no torch."""

from secfl.segmentation.segmentation_task import build_task, load_dataset
from secfl.segmentation.task import LocalResult, Preview, SiteMetrics, State, Task

__all__ = ["LocalResult", "Preview", "SiteMetrics", "State", "Task", "build_task", "load_dataset"]
