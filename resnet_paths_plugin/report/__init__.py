"""One HTML page from one result: what the model is, its blocks, every figure with what to see in it, provenance.

Reads results (or files of them) alone; runs no model.
"""

from resnet_paths_plugin.report.figures import ReportFigure, figures
from resnet_paths_plugin.report.page import report_html, write_report

__all__ = ["ReportFigure", "figures", "report_html", "write_report"]
