"""The report of a run, one HTML file that needs nothing else; and the card of a model.

Importing this package is cheap: jinja2 is loaded when a page is made.
"""

from __future__ import annotations

from steelyard.report.model_card import model_card
from steelyard.report.page import REPORT_NAME, Report, render_report, write_report

__all__ = ["REPORT_NAME", "Report", "model_card", "render_report", "write_report"]
