"""Why a network is slow: where its time goes, ShuffleNet V2's guidelines G1 to G4, what a change would save."""

from nasspace.guidelines.explanation import Explanation, Finding, LayerTime, explain

__all__ = ["Explanation", "Finding", "LayerTime", "explain"]
