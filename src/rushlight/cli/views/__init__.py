"""Views of results on a terminal: module trees and verification reports."""
