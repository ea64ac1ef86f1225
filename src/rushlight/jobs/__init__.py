"""Batch jobs: a file of requests in, a file of results out, and what is finished is never done again."""

from rushlight.jobs.job import Job, Summary
from rushlight.jobs.lines import Line, read_lines
from rushlight.jobs.requests import RequestLines
from rushlight.jobs.result_line import ResultLine
from rushlight.jobs.results import ResultsFile

__all__ = ["Job", "Line", "RequestLines", "ResultLine", "ResultsFile", "Summary", "read_lines"]
