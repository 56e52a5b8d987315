"""From prompts, images and numbers to what the network is conditioned on (paper section 4 and Appendix D)."""

from model.conditioning.conditioning import Conditioning, ConditioningError, drop

__all__ = ["Conditioning", "ConditioningError", "drop"]
