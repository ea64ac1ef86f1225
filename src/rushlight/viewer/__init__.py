"""See: a module tree as one web page, which needs no network and no server."""

from rushlight.viewer.page import render_page, write_page

__all__ = ["render_page", "write_page"]
