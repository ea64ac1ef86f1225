"""Renders results as self-contained web pages."""

from rushlight.viewer.page import render_page, write_page
from rushlight.viewer.tree import tree_page

__all__ = ["render_page", "tree_page", "write_page"]
