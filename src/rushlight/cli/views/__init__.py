"""Results drawn for a terminal: module trees and verification tables."""
