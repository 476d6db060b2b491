"""Why a network is slow: the time of its layers, ShuffleNet V2's guidelines G1 to G4, and what changes would save."""

from nasspace.guidelines.explanation import Explanation, Finding, LayerTime, explain, explain_file

__all__ = ["Explanation", "Finding", "LayerTime", "explain", "explain_file"]
