"""Self-contained HTML reports: one per subject and one per study, drawn from finished results."""

from isocortex.report.options import ReportOptions
from isocortex.report.study import report_study
from isocortex.report.subject import report_subject

__all__ = ["ReportOptions", "report_study", "report_subject"]
