"""Batch jobs: generate a file of results from a file of requests, and resume where an earlier run ended."""

from rushlight.jobs.job import Job, Summary
from rushlight.jobs.lines import Line, read_lines
from rushlight.jobs.requests import RequestLines
from rushlight.jobs.result_line import ResultLine
from rushlight.jobs.results import ResultsFile

__all__ = ["Job", "Line", "RequestLines", "ResultLine", "ResultsFile", "Summary", "read_lines"]
